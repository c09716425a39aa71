// Elements made of text alone: nothing that a message or a receiver is called is ever markup.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name === "on") for (const [event, act] of Object.entries(value)) made.addEventListener(event, act);
    else if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  for (const child of children) if (child !== null && child !== undefined) made.append(child);
  return made;
}

// Say something, unless that is what is said already: a live region would be read again.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

// "1 message", "2 messages": a number with its noun.
export const counted = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB"];

export function bytes(value) {
  let unit = 0;
  let rest = value;
  while (rest >= 1024 && unit < UNITS.length - 1) {
    rest /= 1024;
    unit += 1;
  }
  return `${number(rest, unit && rest < 100 ? 1 : 0)} ${UNITS[unit]}`;
}

export function lasting(milliseconds) {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${seconds} s`;
}

export const moment = (milliseconds) => new Date(milliseconds).toLocaleString();

// A small plot of the newest values, on its own scale.
export function plot(told) {
  const made = document.createElementNS(SVG, "svg");
  made.setAttribute("class", "plot");
  made.setAttribute("viewBox", "0 0 100 20");
  made.setAttribute("preserveAspectRatio", "none");
  made.setAttribute("role", "img");
  made.append(document.createElementNS(SVG, "polyline"));
  drawn(made, [], told);
  return made;
}

export function drawn(svg, values, told) {
  const top = Math.max(1, ...values);
  const step = values.length > 1 ? 100 / (values.length - 1) : 0;
  const points = values.map((value, at) => `${(at * step).toFixed(1)},${(19 - (18 * value) / top).toFixed(1)}`);
  svg.firstChild.setAttribute("points", points.join(" "));
  svg.setAttribute("aria-label", told);
}
