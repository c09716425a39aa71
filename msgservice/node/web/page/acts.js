// Acts: what each would touch is shown first, with the same on the command line; then it is asked.

import { ask, path } from "./api.js";
import { $, bytes, counted, say } from "./dom.js";

const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
export const command = (...words) => ["msgservice", ...words].map(quoted).join(" ");

const TOLD = 10000; // ms

// Say what was done, for a while: on the page, and in the dialog that would lie over it.
function tell(text) {
  for (const element of [$("done"), $("receiver-done")]) {
    element.textContent = text;
    setTimeout(() => element.textContent === text && say(element, ""), TOLD);
  }
}

// Say what is under way, until `tell` says what came of it, or "" that it is nothing any more.
function begun(text) {
  for (const element of [$("done"), $("receiver-done")]) element.textContent = text;
}

// Show what an act would touch; fulfilled with whether it was done.
export async function confirm({ heading, touches, words, act, done }) {
  const dialog = $("act");
  say($("act-heading"), heading);
  say($("act-command"), command(...words));
  say($("act-touches"), "Counting …");
  say($("act-error"), "");
  const yes = $("act-yes");
  yes.disabled = true;
  dialog.returnValue = "no";
  dialog.showModal();
  try {
    const told = await touches();
    say($("act-touches"), told.text);
    yes.disabled = told.nothing === true;
  } catch (problem) {
    say($("act-touches"), "");
    say($("act-error"), problem.message);
  }
  if (!dialog.open) return false;
  await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
  if (dialog.returnValue !== "yes") return false;
  begun(`${heading} …`);
  try {
    const told = await act();
    tell(done(told));
    return true;
  } catch (problem) {
    begun("");
    say($("act-error"), problem.message);
    say($("act-touches"), "");
    yes.disabled = true;
    dialog.returnValue = "no";
    dialog.showModal();
    return false;
  }
}

export const pause = (name) =>
  confirm({
    heading: `Pause ${name}`,
    words: ["receivers", "pause", name],
    touches: async () => ({ text: "Nothing is sent to it until it is resumed. What waits is kept." }),
    act: () => ask("POST", path(["v1", "receivers", name, "pause"]), {}),
    done: () => `${name} is paused.`,
  });

export const resume = (name) =>
  confirm({
    heading: `Resume ${name}`,
    words: ["receivers", "resume", name],
    touches: async () => ({ text: "What waits for it is sent again, in its order." }),
    act: () => ask("POST", path(["v1", "receivers", name, "resume"]), {}),
    done: () => `${name} is resumed.`,
  });

async function allPages(method, pieces, body) {
  const total = { count: 0, size: 0 };
  let after = 0;
  let more = {};
  while (after !== null) {
    const page = await ask(method, path(pieces), { ...body, ...more, after });
    total.count += page.count;
    total.size += page.size;
    after = page.next;
    if (page.end !== undefined) more = { end: page.end };
  }
  return total;
}

const letters = (name, what, words, heading, said, only = {}) =>
  confirm({
    heading,
    words: ["dead", what, name, ...words],
    touches: async () => {
      const told = await allPages("POST", ["v1", "receivers", name, "dead", what], { ...only, dry_run: true });
      return { text: `${counted(told.count, "dead letter")}, ${bytes(told.size)}.`, nothing: told.count === 0 };
    },
    act: () => allPages("POST", ["v1", "receivers", name, "dead", what], only),
    done: (told) => `${counted(told.count, "dead letter")} of ${name} ${said}.`,
  });

const oneOf = (position) => (position === undefined ? ["--all"] : [`log:${position}`]);
const only = (position) => (position === undefined ? {} : { of: `log:${position}` });

export const requeue = (name, position) =>
  letters(name, "requeue", oneOf(position), `Send dead letters of ${name} again`, "sent again", only(position));

export const drop = (name, position) =>
  letters(name, "drop", oneOf(position), `Drop dead letters of ${name}`, "dropped", only(position));

export const purge = (name) =>
  confirm({
    heading: `Cancel what waits for ${name}`,
    words: ["purge", name],
    touches: async () => {
      const told = await allPages("POST", ["v1", "receivers", name, "purge"], { dry_run: true });
      return {
        text: `${counted(told.count, "message")}, ${bytes(told.size)}, will never be delivered to it.`,
        nothing: told.count === 0,
      };
    },
    act: () => allPages("POST", ["v1", "receivers", name, "purge"], {}),
    done: (told) => `${counted(told.count, "message")} for ${name} cancelled.`,
  });

export const sendTest = (name) =>
  confirm({
    heading: `Send a test to ${name}`,
    words: ["receivers", "test", name],
    touches: async () => ({ text: "One call to its address, of no message: nothing is stored or counted." }),
    act: async () => {
      const told = await ask("POST", path(["v1", "receivers", name, "test"]), {});
      if (!told.taken) throw new Error(`Not taken: ${told.reason}`);
      return told;
    },
    done: (told) => `${name} has taken the test: ${told.code} after ${told.seconds} s.`,
  });

// What lies behind a place is sent again; the node counts it a part at a time.
async function countFrom(name, first) {
  let count = 0;
  let replay = { next: first, over: false };
  while (!replay.over) {
    const told = await ask("POST", path(["v1", "receivers", name, "rewind", "count"]), { first: replay.next, end: replay.end });
    replay = told.replay;
    count += replay.copied;
  }
  return count;
}

export const rewind = (name, from) =>
  confirm({
    heading: `Send ${name} again what it has acknowledged`,
    words: ["rewind", name, ...(from ? ["--from", from.replace(/^@/, "")] : [])],
    touches: async () => {
      const count = await countFrom(name, from || "first");
      return { text: `${counted(count, "message")}, as copies that say so, from ${from || "the oldest that is kept"} on.`, nothing: count === 0 };
    },
    act: () => ask("POST", path(["v1", "receivers", name, "rewind"]), { first: from || "first" }),
    done: () => `${name} is sent again what it has acknowledged.`,
  });

export const cancelRewind = (name) =>
  confirm({
    heading: `End the rewind of ${name}`,
    words: ["rewind", name, "--cancel"],
    touches: async () => ({ text: "Nothing more is copied; what was copied is still delivered." }),
    act: () => ask("DELETE", path(["v1", "receivers", name, "rewind"])),
    done: () => `The rewind of ${name} has ended.`,
  });

export const cancelDelayed = (id, count) =>
  confirm({
    heading: `Cancel ${id}`,
    words: ["delayed", "cancel", id, ...(count > 1 ? ["--count", String(count)] : [])],
    touches: async () => ({ text: `${counted(count, "message")} will be delivered to nobody.` }),
    act: () => ask("POST", path(["v1", "delayed", id, "cancel"]), { count }),
    done: (told) => `${counted(told.cancelled, "message")} cancelled.`,
  });
