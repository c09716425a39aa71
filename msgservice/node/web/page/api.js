// Requests to the node: JSON there and back, errors as sentences, and the login. What is typed is
// kept in this module and nowhere else: loading the page again forgets it.

let said = null; // what Authorization says

export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export function logIn({ user, password, token }) {
  if (token) {
    said = `Bearer ${token}`;
    return;
  }
  const bytes = new TextEncoder().encode(`${user}:${password}`);
  said = `Basic ${btoa(String.fromCharCode(...bytes))}`;
}

export async function ask(method, path, body) {
  const headers = { Accept: "application/json" };
  if (said !== null) headers.Authorization = said;
  const options = { method, headers, credentials: "omit", cache: "no-store", redirect: "error" };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Problem(0, "The node does not answer.");
  }
  const text = await response.text();
  let value = {};
  try {
    value = text ? JSON.parse(text) : {};
  } catch {
    value = {};
  }
  if (!response.ok) throw new Problem(response.status, value.detail || value.title || response.statusText);
  return value;
}

// A path of pieces, each encoded, and the query; what is undefined or null is left out.
export function path(pieces, query = {}) {
  const fields = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  const tail = fields.length ? `?${new URLSearchParams(fields)}` : "";
  return `/${pieces.map(encodeURIComponent).join("/")}${tail}`;
}
