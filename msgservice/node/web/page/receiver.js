// The dialog of one receiver: what it is, its dead letters, what is next for it, and what can be done.

import { drop, pause, purge, requeue, resume } from "./acts.js";
import { ask, path } from "./api.js";
import { ago } from "./clock.js";
import { $, bytes, counted, el, lasting, moment, number, say } from "./dom.js";

const LETTERS = 50;

export async function show(row) {
  const name = row.name;
  say($("receiver-heading"), name);
  const body = $("receiver-body");
  body.replaceChildren(facts(row), buttons(row), ...(await parts(name)));
  const dialog = $("receiver");
  if (!dialog.open) dialog.showModal();
}

function facts(row) {
  const list = el("dl");
  const add = (term, text) => list.append(el("dt", {}, term), el("dd", {}, text));
  add("Subjects", row.subjects.join(" ") || "only what names it");
  add("Address", row.address ?? "it attaches by itself");
  add("Health", `${row.health}, ${row.connected ? "connected" : "away"} since ${moment(row.since)}`);
  if (row.shared) {
    add("Workers", `${row.workers}, which share its messages`);
  }
  add("Waiting", `${counted(row.queued, "message")}, ${bytes(row.queued_bytes)}`);
  if (row.oldest) add("Oldest", `${row.oldest.subject}, for ${lasting(ago(row.oldest.at))}`);
  if (row.last_error) add("Why", row.last_error);
  if (row.next_try_at) add("Tried again", moment(row.next_try_at));
  const settled = Object.entries(row.settled).map(([status, count]) => `${number(count)} ${status}`);
  add("Until now", settled.join(", ") || "nothing");
  return list;
}

function buttons(row) {
  const again = (act) => async () => {
    if (await act()) $("receiver").close();
  };
  const paused = row.health === "paused";
  return el(
    "p",
    { class: "buttons" },
    el("button", { type: "button", on: { click: again(() => (paused ? resume : pause)(row.name)) } }, paused ? "Resume" : "Pause"),
    el("button", { type: "button", on: { click: again(() => purge(row.name)) } }, "Cancel what waits"),
  );
}

async function parts(name) {
  const [dead, next] = await Promise.all([
    part("Dead letters", () => letters(name)),
    part("Next for it", () => waiting(name)),
  ]);
  return [...dead, ...next];
}

async function part(heading, make) {
  try {
    return [el("h3", {}, heading), ...(await make())];
  } catch (problem) {
    return [el("h3", {}, heading), el("p", { class: "soft" }, problem.message)];
  }
}

async function letters(name) {
  const page = await ask("GET", path(["v1", "receivers", name, "dead"], { limit: LETTERS }));
  if (!page.dead.length) return [el("p", { class: "soft" }, "None.")];
  const close = (act) => async () => {
    if (await act()) $("receiver").close();
  };
  const rows = page.dead.map((letter) =>
    el(
      "li",
      {},
      el("strong", {}, letter.subject),
      ` ${letter.id ?? letter.sender}, ${bytes(letter.size)}, ${moment(letter.at)}: ${letter.reason.split("\n")[0]} `,
      el("button", { type: "button", on: { click: close(() => requeue(name, letter.position)) } }, "Send again"),
      " ",
      el("button", { type: "button", on: { click: close(() => drop(name, letter.position)) } }, "Drop"),
    ),
  );
  return [
    el(
      "p",
      { class: "buttons" },
      el("button", { type: "button", class: "strong", on: { click: close(() => requeue(name)) } }, "Send all again"),
      el("button", { type: "button", on: { click: close(() => drop(name)) } }, "Drop all"),
    ),
    el("ol", {}, ...rows),
    page.next === null ? null : el("p", { class: "soft" }, `The first ${LETTERS}; there are more.`),
  ].filter((one) => one !== null);
}

async function waiting(name) {
  const page = await ask("GET", path(["v1", "receivers", name, "next"], { limit: 10 }));
  if (!page.messages.length) return [el("p", { class: "soft" }, "Nothing waits.")];
  return [
    el(
      "ol",
      {},
      ...page.messages.map((one) =>
        el(
          "li",
          {},
          el("strong", {}, one.subject),
          ` ${one.id ?? one.sender}, ${bytes(one.size)}, ${one.status} since ${moment(one.stored_at)}`,
          one.reason ? `: ${one.reason.split("\n")[0]}` : "",
        ),
      ),
    ),
  ];
}
