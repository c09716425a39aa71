// Events of the node (Server-Sent Events), by fetch: EventSource could say no header, and would hide
// why it was refused.

import { HEADERS, problemOf, unanswered } from "./api.js";

const SILENCE = 20000; // ms; the node says each ten seconds that nothing has ended

// Call heard(name, value, id) with each event. Fulfilled when `left` is aborted; rejected with a
// Problem where the node refuses, ends, or says nothing any more.
export async function events(path, { last, left, heard }) {
  const ended = new AbortController();
  const end = () => ended.abort();
  left.addEventListener("abort", end);
  let timer = setTimeout(end, SILENCE);
  try {
    const headers = { ...HEADERS, Accept: "text/event-stream" };
    if (last) headers["Last-Event-ID"] = last;
    const options = { headers, credentials: "same-origin", cache: "no-store", redirect: "error", signal: ended.signal };
    const response = await fetch(path, options);
    if (!response.ok) throw await problemOf(response);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      clearTimeout(timer);
      timer = setTimeout(end, SILENCE);
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) told(part, heard);
    }
  } catch (problem) {
    if (left.aborted) return;
    throw problem.status === undefined ? unanswered() : problem;
  } finally {
    clearTimeout(timer);
    left.removeEventListener("abort", end);
    end();
  }
  if (!left.aborted) throw unanswered();
}

function told(part, heard) {
  const fields = {};
  for (const line of part.split("\n")) {
    const at = line.indexOf(": ");
    if (at > 0) fields[line.slice(0, at)] = line.slice(at + 2);
  }
  if (fields.event) heard(fields.event, JSON.parse(fields.data), fields.id);
}
