// The page: trouble first, then the node, its receivers, a message's way, what is delayed. The node
// tells it what changes; what it shows is what `msgservice top` shows.

import { cancelDelayed, resume } from "./acts.js";
import { Problem, ask, logIn, logOut, path } from "./api.js";
import { ago, nodeSays, now } from "./clock.js";
import { $, bytes, counted, drawn, el, lasting, moment, number, plot, say } from "./dom.js";
import { events } from "./events.js";
import { show } from "./receiver.js";
import { areTold, button, may } from "./rights.js";

const EVERY = 2000; // ms between two looks where the node is asked, and two values of a plot
const ASKED = 5; // looks before it is listened to again
const HIDDEN = 10000; // ms that a page which nobody sees listens on
const TOGETHER = 100; // ms that events are drawn together
const HISTORY = 60; // values of a plot
const SHOWN = 200; // rows that are drawn at first; the rest on demand

const state = { user: undefined, last: null, node: null, receivers: new Map(), shown: SHOWN, history: new Map() };
const rows = new Map(); // name -> what its row is made of

// --- looking

// Listen to the node as long as the page is seen; where that cannot be, ask it again and again.
async function keepLooking() {
  for (;;) {
    try {
      await seen();
      if (state.user === undefined) await tellUser();
      await listen();
    } catch (problem) {
      await instead(problem);
    }
  }
}

async function instead(problem) {
  try {
    for (let times = 0; times < ASKED && !document.hidden; times += 1) {
      if (mayNot(problem)) throw problem;
      await lookOnce();
      wellAgain();
      await pause(EVERY);
    }
  } catch (other) {
    if (mayNot(other)) {
      await askLogin(other);
    } else {
      $("connection").className = "lost";
      say($("connection"), `${other.message} Trying again.`);
      await pause(EVERY);
    }
  }
}

const mayNot = ({ status }) => status === 401 || status === 403;

const pause = (delay) => new Promise((over) => setTimeout(over, delay));

const seen = () =>
  new Promise((now) => {
    const look = () => {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", look);
      now();
    };
    document.addEventListener("visibilitychange", look);
    look();
  });

function wellAgain() {
  say($("connection"), "");
  $("connection").className = "";
}

// Fulfilled when the page has not been seen for a while; rejected as `events` is.
async function listen() {
  const left = new AbortController();
  let timer = null;
  const look = () => {
    clearTimeout(timer);
    if (document.hidden) timer = setTimeout(() => left.abort(), HIDDEN);
  };
  document.addEventListener("visibilitychange", look);
  look();
  let found = new Map(); // the receivers of a state, until all of it is here
  const heard = (name, value, id) => {
    if (name === "reset") found = new Map();
    if (name === "state") {
      for (const row of value.receivers) found.set(row.name, row);
      if (value.more) return;
      state.receivers = found;
      found = new Map();
    }
    if (name === "change") {
      for (const row of value.changed) state.receivers.set(row.name, row);
      for (const gone of value.gone) state.receivers.delete(gone);
    }
    if (id) state.last = id;
    if (value.node) take(value.node);
  };
  try {
    await events("/v1/events", { last: state.node && state.last, left: left.signal, heard });
  } finally {
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", look);
  }
}

// Ask for all at once, as `msgservice top` does.
async function lookOnce() {
  const found = new Map();
  let after = "";
  let node = null;
  while (after !== null) {
    const page = await ask("GET", path(["v1", "observe"], { after }));
    node = page.node;
    for (const row of page.receivers) found.set(row.name, row);
    after = page.next;
  }
  state.receivers = found;
  state.last = null;
  take(node);
}

let drawing = null;

// The node was seen; what there is is drawn soon, however many events come together.
function take(node) {
  nodeSays(node.at);
  state.node = node;
  wellAgain();
  drawSoon();
}

function drawSoon() {
  drawing ??= setTimeout(() => {
    drawing = null;
    if (state.node) draw();
  }, TOGETHER);
}

// Plots and ages go on with the time, whether something changes or not: the node tells no time. A plot
// has what was settled since its last value: the rate itself may have come and gone between two.
function remember() {
  if (!state.node || document.hidden) return;
  for (const name of state.history.keys()) if (!state.receivers.has(name)) state.history.delete(name);
  const at = performance.now();
  for (const [name, row] of state.receivers) {
    const total = Object.values(row.settled).reduce((sum, count) => sum + count, 0);
    const known = state.history.get(name) ?? { values: [], total, at };
    const seconds = (at - known.at) / 1000;
    known.values.push(seconds ? Math.max(0, total - known.total) / seconds : row.rate);
    if (known.values.length > HISTORY) known.values.shift();
    state.history.set(name, { values: known.values, total, at });
  }
  drawSoon();
}

function askLogin({ status, message }) {
  const dialog = $("login");
  say($("login-error"), status === 403 || !$("who").hidden ? message : "");
  forget();
  return new Promise((resolve) => {
    if (!dialog.open) dialog.showModal();
    $("login-form").onsubmit = async (event) => {
      event.preventDefault();
      $("log-in").disabled = true;
      try {
        await logIn({ user: $("user").value, password: $("password").value, token: $("token").value });
        $("login-form").reset();
        dialog.close();
        resolve();
      } catch (problem) {
        say($("login-error"), problem.message);
      } finally {
        $("log-in").disabled = false;
      }
    };
    dialog.oncancel = (event) => event.preventDefault();
  });
}

// What was shown is only for who was logged in.
function forget() {
  for (const id of ["troubles", "numbers", "rows", "way", "delayed", "receiver-body"]) $(id).replaceChildren();
  for (const id of ["facts", "trouble-count", "shown", "space-told"]) say($(id), "");
  for (const id of ["receiver", "act"]) $(id).close("no");
  Object.assign(state, { last: null, node: null, receivers: new Map(), history: new Map() });
  rows.clear();
  drawnTroubles = "";
  state.user = undefined;
  $("who").hidden = true;
}

async function tellUser() {
  const told = await ask("GET", "/v1/whoami");
  const { user, how } = told;
  areTold(told);
  if (user !== null && !may("observe")) {
    const cure = "Whoever configures the node can let it, by the right to request $node.observe.";
    throw new Problem(403, `${user} is logged in, but may not look at this node. ${cure}`);
  }
  state.user = user;
  say($("user-told"), user ?? "");
  $("who").hidden = !/^(password|token )/.test(how);
}

async function leave() {
  try {
    await logOut();
    forget();
    location.reload();
  } catch (problem) {
    say($("connection"), problem.message);
  }
}

// --- drawing

function draw() {
  const { node } = state;
  document.title = `${node.name}: ${severe().length ? `${severe().length} in trouble` : "well"}`;
  say($("name"), node.name);
  say($("facts"), `msgservice ${node.version}, up ${lasting(now() - node.started_at)}, ${node.listeners.join(", ")}`);
  drawTroubles();
  drawNumbers(node);
  drawReceivers();
}

const all = () => [...state.receivers.values()];

function troubles() {
  const found = state.node.troubles.map((trouble) => ({ trouble, row: null }));
  for (const row of all()) for (const trouble of row.troubles) found.push({ trouble, row });
  return found.sort((a, b) => Number(b.trouble.is_severe) - Number(a.trouble.is_severe));
}

const severe = () => troubles().filter(({ trouble }) => trouble.is_severe);

let drawnTroubles = "";

function drawTroubles() {
  const found = troubles();
  const count = severe().length;
  say($("trouble-count"), found.length ? `${number(count)} severe, ${number(found.length - count)} mild.` : "None: every message gets where it is meant to.");
  const shown = found.slice(0, 50);
  const same = JSON.stringify(shown.map(({ trouble, row }) => [trouble, row?.name]));
  if (same === drawnTroubles) return; // else focus would be lost
  drawnTroubles = same;
  $("troubles").replaceChildren(
    ...shown.map(({ trouble, row }) =>
      el(
        "li",
        { class: trouble.is_severe ? "severe" : "mild" },
        el("p", { class: "sentence" }, trouble.sentence),
        el("p", {}, trouble.help, trouble.since ? ` Since ${moment(trouble.since)}.` : ""),
        el(
          "p",
          { class: "buttons" },
          row ? el("button", { type: "button", on: { click: () => show(state.receivers.get(row.name) ?? row) } }, `Look at ${row.name}`) : null,
          row && trouble.kind === "paused"
            ? button(["receivers.resume"], `Resume ${row.name}`, () => resume(row.name))
            : null,
          trouble.command ? el("code", {}, trouble.command) : null,
        ),
      ),
    ),
  );
}

function drawNumbers(node) {
  const numbers = [
    ["Messages in, a second", number(node.stored_rate, 1)],
    ["Settled at receivers, a second", number(node.settled_rate, 1)],
    ["Stored since the start", number(node.stored)],
    ["Connections", number(node.connections)],
    ["Receivers", number(node.receivers)],
    ["Loaded for receivers", bytes(node.loaded_bytes)],
    ["Dead letters since the start", number(node.dead_letters?.new ?? 0)],
    ["Refused for want of room", number(node.refused)],
  ];
  const list = $("numbers");
  if (list.children.length !== numbers.length) {
    list.replaceChildren(...numbers.map(([term]) => el("div", {}, el("dt", {}, term), el("dd", {}, ""))));
  }
  numbers.forEach(([, text], at) => say(list.children[at].lastChild, text));
  const { used, maximum, free } = node.room;
  $("space").value = used / maximum;
  say($("space-told"), `${bytes(used)} of ${bytes(maximum)} used, ${bytes(free)} free on the disk`);
}

const ORDERS = {
  trouble: (a, b) => worst(b) - worst(a) || b.queued - a.queued || a.name.localeCompare(b.name),
  queued: (a, b) => b.queued - a.queued || a.name.localeCompare(b.name),
  rate: (a, b) => b.rate - a.rate || a.name.localeCompare(b.name),
  name: (a, b) => a.name.localeCompare(b.name),
};

const worst = (row) => (row.troubles.some((one) => one.is_severe) ? 2 : row.troubles.length ? 1 : 0);

function drawReceivers() {
  const wanted = $("filter").value;
  const found = all().filter((row) => row.name.includes(wanted)).sort(ORDERS[$("sort").value]);
  const shown = found.slice(0, state.shown);
  say($("shown"), `${number(shown.length)} of ${number(state.receivers.size)}`);
  $("more").hidden = shown.length === found.length;
  for (const name of rows.keys()) if (!state.receivers.has(name)) rows.delete(name);
  const body = $("rows");
  shown.forEach((row, at) => {
    const made = rowOf(row);
    if (body.children[at] !== made) body.insertBefore(made, body.children[at] ?? null);
  });
  while (body.children.length > shown.length) body.lastChild.remove();
}

function rowOf(row) {
  let made = rows.get(row.name);
  if (made === undefined) {
    const cell = (label, more = "") => el("td", { "data-label": label, class: more });
    const open = () => show(state.receivers.get(row.name) ?? row);
    const name = el("button", { type: "button", class: "name", on: { click: open } }, row.name);
    made = {
      health: cell("Health"),
      queued: cell("Waiting", "number"),
      bytes: cell("Bytes", "number"),
      oldest: cell("Oldest", "number"),
      rate: cell("A second", "number"),
      plot: plot(""),
      dead: cell("Dead", "number"),
    };
    const first = el("td", { "data-label": "Receiver" }, name);
    const drawnIn = el("td", { "data-label": "Last minutes" }, made.plot);
    made.row = el("tr", {}, first, made.health, made.queued, made.bytes, made.oldest, made.rate, drawnIn, made.dead);
    rows.set(row.name, made);
  }
  made.health.className = row.health;
  const since = row.health === "up" || !row.health_since ? "" : ` ${lasting(ago(row.health_since))}`;
  const workers = row.shared && row.connected ? `, ${row.workers} workers` : "";
  say(made.health, `${row.health}${since}${workers}`);
  say(made.queued, number(row.queued));
  say(made.bytes, bytes(row.queued_bytes));
  say(made.oldest, row.oldest ? lasting(ago(row.oldest.at)) : "–");
  say(made.rate, number(row.rate, 1));
  say(made.dead, number(row.dead));
  const values = state.history.get(row.name)?.values ?? [];
  const most = Math.max(0, ...values);
  drawn(made.plot, values, `rate of ${row.name}: now ${number(row.rate, 1)}, at most ${number(most, 1)} messages a second`);
  return made.row;
}

// --- a message's way

async function find(event) {
  event.preventDefault();
  const id = $("message-id").value.trim();
  const place = $("way");
  place.replaceChildren("Looking …");
  try {
    let receivers = {};
    let after = 0;
    let page = null;
    let promise = null;
    while (after !== null) {
      page = await ask("GET", path(["v1", "messages", id], { after }));
      promise ??= page.promise; // in the first
      receivers = { ...receivers, ...page.receivers }; // assigned, one called __proto__ is lost
      after = page.next;
    }
    place.replaceChildren(way(page, receivers, promise));
  } catch (problem) {
    place.replaceChildren(problem.message);
  }
}

function way(page, receivers, promise) {
  const list = el("ol", { class: "way" });
  const where = page.due ? `delayed until ${moment(page.due)}` : `on disk as log:${page.position}`;
  list.append(
    el("li", { class: "acknowledged" }, el("strong", {}, page.subject), ` from ${page.sender}, ${where}, ${moment(page.stored_at)}`),
  );
  for (const [name, at] of Object.entries(receivers)) {
    const tries = at.attempts ? `, ${counted(at.attempts, "attempt")}` : "";
    list.append(
      el("li", { class: at.status }, el("strong", {}, name), `: ${at.status}${tries}`, at.reason ? `. ${at.reason.split("\n")[0]}` : ""),
    );
  }
  if (promise) list.append(el("li", { class: "promise" }, el("strong", {}, "Promise"), `: ${promised(promise)}`));
  if (!Object.keys(receivers).length && !page.due) list.append(el("li", {}, "It was for no receiver."));
  return list;
}

function promised(promise) {
  const wanted = `${counted(promise.need, "receiver")} until ${moment(promise.until)}; ${number(promise.acknowledged)} by now`;
  const at = promise.decided_at ? ` at ${moment(promise.decided_at)}` : "";
  return `${promise.outcome}${at}${promise.reason ? `, ${promise.reason}` : ""}: ${wanted}`;
}

// --- what is delayed

async function lookDelayed() {
  const place = $("delayed");
  try {
    const page = await ask("GET", path(["v1", "delayed"], { limit: 100 }));
    if (!page.delayed.length) {
      place.replaceChildren(el("p", { class: "soft" }, "Nothing."));
      return;
    }
    place.replaceChildren(
      el(
        "ol",
        {},
        ...page.delayed.map((run) =>
          el(
            "li",
            {},
            el("strong", {}, run.subject),
            ` ${counted(run.messages, "message")} ${run.message_id ? `${run.message_id} ` : ""}from ${run.sender}, due ${moment(run.due)} `,
            el(
              "button",
              {
                type: "button",
                on: {
                  click: async () => {
                    if (await cancelDelayed(run.message_id ?? run.sender, run.messages)) await lookDelayed();
                  },
                },
              },
              "Cancel",
            ),
          ),
        ),
      ),
    );
  } catch (problem) {
    place.replaceChildren(problem.message);
  }
}

$("filter").addEventListener("input", () => state.node && drawReceivers());
$("sort").addEventListener("change", () => state.node && drawReceivers());
$("more").addEventListener("click", () => {
  state.shown += SHOWN;
  drawReceivers();
});
$("find").addEventListener("submit", find);
$("look-delayed").addEventListener("click", lookDelayed);
$("log-out").addEventListener("click", leave);
setInterval(remember, EVERY);
keepLooking();
