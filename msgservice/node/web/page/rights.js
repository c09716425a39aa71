// The rights of who is at the browser, as the node tells them (`whoami`): what it may not do is shown,
// and cannot be clicked. The node decides again at each request; this only saves a vain one.

import { el } from "./dom.js";

let patterns = null; // null: nothing is known yet
let who = "";

export function areTold({ user, request }) {
  who = user ?? "";
  patterns = request.map((one) => one.split("."));
}

const matches = (pattern, tokens) =>
  pattern.every((token, at) => (token === ">" ? tokens.length > at : token === "*" ? at > 0 && at < tokens.length : token === tokens[at])) &&
  (pattern.at(-1) === ">" ? pattern[0] !== ">" : pattern.length === tokens.length);

// Whether an operation of the node may be asked for: `receivers.pause`.
export function may(operation) {
  const tokens = ["$node", ...operation.split(".")];
  return patterns === null || patterns.some((pattern) => matches(pattern, tokens));
}

// Why it may not, for people; "" where it may.
export const lacks = (...operations) => {
  const missing = operations.find((one) => !may(one));
  return missing === undefined ? "" : `${who || "Who asks here"} may not: that needs the right to request $node.${missing}`;
};

// A button for an act that needs these operations.
export function button(operations, text, click, more = {}) {
  const why = lacks(...operations);
  return el("button", { type: "button", disabled: why !== "", title: why, on: { click }, ...more }, text);
}
