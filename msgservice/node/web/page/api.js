// Requests to the node: JSON there and back, errors as sentences, and the login, which is a cookie
// that no script can read. The node takes it only with the header that is said here.

export const HEADERS = { "Msgservice-Page": "1" };

export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export const logIn = ({ user, password, token }) =>
  ask("POST", "/v1/login", token ? { token } : { user, password });

export const logOut = () => ask("POST", "/v1/logout", {});

export async function ask(method, path, body) {
  const headers = { ...HEADERS, Accept: "application/json" };
  const options = { method, headers, credentials: "same-origin", cache: "no-store", redirect: "error" };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw unanswered();
  }
  if (!response.ok) throw await problemOf(response);
  return valueOf(response);
}

// What is at a path, as bytes under the name that the node gives them.
export async function save(at) {
  let response;
  try {
    response = await fetch(at, { headers: HEADERS, credentials: "same-origin", cache: "no-store", redirect: "error" });
  } catch {
    throw unanswered();
  }
  if (!response.ok) throw await problemOf(response);
  const name = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") ?? "")?.[1] ?? "message.bin";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([await response.arrayBuffer()], { type: "application/octet-stream" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

export const unanswered = () => new Problem(0, "The node does not answer.");

// What an answer says that is none of success.
export async function problemOf(response) {
  const value = await valueOf(response);
  return new Problem(response.status, value.detail || value.title || response.statusText);
}

async function valueOf(response) {
  try {
    return JSON.parse(await response.text());
  } catch {
    return {};
  }
}

// A path of pieces, each encoded, and the query; what is undefined or null is left out.
export function path(pieces, query = {}) {
  const fields = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  const tail = fields.length ? `?${new URLSearchParams(fields)}` : "";
  return `/${pieces.map(encodeURIComponent).join("/")}${tail}`;
}
