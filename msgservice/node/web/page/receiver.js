// The dialog of one receiver: what it is, its dead letters, what is next for it, and what can be done.

import { cancelRewind, drop, pause, purge, requeue, resume, rewind, sendTest } from "./acts.js";
import { ask, path, save } from "./api.js";
import { ago } from "./clock.js";
import { $, bytes, counted, el, lasting, moment, number, say } from "./dom.js";
import { button, lacks } from "./rights.js";

const LETTERS = 50;

export async function show(row) {
  const name = row.name;
  say($("receiver-heading"), name);
  const body = $("receiver-body");
  body.replaceChildren(facts(row), buttons(row), ...(await parts(name)), ...again(row));
  const dialog = $("receiver");
  if (!dialog.open) dialog.showModal();
}

function facts(row) {
  const list = el("dl");
  const add = (term, text) => list.append(el("dt", {}, term), el("dd", {}, text));
  add("Subjects", row.subjects.join(" ") || "only what names it");
  add("Address", row.address ?? "it attaches by itself");
  const since = row.health === "up" || row.health === "away" || !row.health_since ? "" : ` since ${moment(row.health_since)}`;
  add("Health", `${row.health}${since}, ${row.connected ? "connected" : "away"} since ${moment(row.since)}`);
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
  const close = (act) => async () => {
    if (await act()) $("receiver").close();
  };
  const paused = row.health === "paused";
  return el(
    "p",
    { class: "buttons" },
    paused
      ? button(["receivers.resume"], "Resume", close(() => resume(row.name)))
      : button(["receivers.pause"], "Pause", close(() => pause(row.name))),
    button(["receivers.purge"], "Cancel what waits", close(() => purge(row.name))),
    /^(xmlrpc\+)?https?:/i.test(row.address ?? "")
      ? button(["receivers.test"], "Send a test", () => sendTest(row.name))
      : null,
  );
}

// What it has acknowledged, sent again: the form, or how far it is.
function again(row) {
  const close = (act) => async () => {
    if (await act()) $("receiver").close();
  };
  const heading = el("h3", {}, "Send again");
  const { replay } = row;
  if (replay && !replay.over) {
    const waits = replay.waits ? `, and waits: ${replay.waits}` : "";
    return [
      heading,
      el("p", {}, `It is sent again from log:${replay.first} to log:${replay.end}: ${counted(replay.copied, "message")} until now${waits}. `),
      el("p", { class: "buttons" }, button(["receivers.rewind_cancel"], "End it", close(() => cancelRewind(row.name)))),
    ];
  }
  const why = lacks("receivers.rewind", "receivers.rewind_count");
  const from = el("input", { id: "rewind-from", type: "text", autocomplete: "off", spellcheck: false, placeholder: "the oldest that is kept" });
  const submit = (event) => {
    event.preventDefault();
    close(() => rewind(row.name, from.value.trim()))();
  };
  return [
    heading,
    el(
      "form",
      { on: { submit } },
      el("label", { for: "rewind-from" }, "What it has acknowledged, from this id, log:POSITION or time (@2026-11-29T07:00) on "),
      from,
      " ",
      el("button", { type: "submit", disabled: why !== "", title: why }, "Rewind"),
    ),
  ];
}

async function parts(name) {
  const { bodies } = await ask("GET", "/page/options.json").catch(() => ({}));
  const [dead, next] = await Promise.all([
    part("Dead letters", () => letters(name, bodies)),
    part("Next for it", () => waiting(name, bodies)),
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

// A button that saves a body; what speaks against that stands beside it.
function saving(pieces) {
  const told = el("span", { class: "soft", role: "status" });
  const click = async () => {
    say(told, "");
    try {
      await save(path(pieces));
    } catch (problem) {
      say(told, ` ${problem.message}`);
    }
  };
  return el("span", {}, el("button", { type: "button", on: { click } }, "Save body"), told);
}

async function letters(name, bodies) {
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
      el(
        "p",
        { class: "buttons" },
        button(["dead.requeue"], "Send again", close(() => requeue(name, letter.position))),
        button(["dead.drop"], "Drop", close(() => drop(name, letter.position))),
        bodies ? saving(["v1", "receivers", name, "dead", letter.position, "body"]) : null,
      ),
    ),
  );
  return [
    el(
      "p",
      { class: "buttons" },
      button(["dead.requeue"], "Send all again", close(() => requeue(name)), { class: "strong" }),
      button(["dead.drop"], "Drop all", close(() => drop(name))),
    ),
    el("ol", {}, ...rows),
    page.next === null ? null : el("p", { class: "soft" }, `The first ${LETTERS}; there are more.`),
  ].filter((one) => one !== null);
}

async function waiting(name, bodies) {
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
          ...(bodies ? [" ", saving(["v1", "receivers", name, "next", one.position, "body"])] : []),
        ),
      ),
    ),
  ];
}
