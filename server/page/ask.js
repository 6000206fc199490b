// Requests to the server, and readable errors.

const ROOT = new URL("../", import.meta.url); // with the path prefix of a reverse proxy
const TIMEOUT_MS = 60_000;
const KEY = "limbeck-key";

const TITLES = {
  400: "This image cannot be read.",
  401: "This server needs an API key.",
  403: "This API key is not permitted.",
  413: "This image is too large.",
  415: "This image type is not supported.",
  429: "Too many requests.",
  503: "The server is busy.",
  504: "The server is busy.",
};

/** A failed request: title, reason and HTTP status (0: no response). */
export class Refused extends Error {
  constructor(status, title, reason = "") {
    super(reason);
    Object.assign(this, { status, title });
  }

  /** Whether a retry may succeed. */
  get isTransient() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** Fetch the JSON at `path`, with a body by POST. Throws Refused, or AbortError after `signal` aborts. */
export async function ask(path, { query = {}, body, signal } = {}) {
  const key = sessionStorage.getItem(KEY);
  const deadline = AbortSignal.timeout(TIMEOUT_MS);
  let response;
  try {
    response = await fetch(new URL(`${path}?${new URLSearchParams(query)}`, ROOT), {
      method: body ? "POST" : "GET",
      headers: key ? { Authorization: `Bearer ${key}` } : {},
      body,
      signal: signal ? AbortSignal.any([signal, deadline]) : deadline,
    });
    if (response.ok) return await response.json();
  } catch (error) {
    if (signal?.aborted) throw error;
    if (deadline.aborted) throw new Refused(0, "The server does not respond.", "It did not answer within a minute.");
    throw new Refused(0, "The server cannot be reached.", "It may have stopped, or the connection was lost.");
  }
  if (response.status === 401) throw new Refused(401, key ? "This API key is not valid." : TITLES[401], "Enter it above.");
  throw new Refused(response.status, TITLES[response.status] ?? "The request failed.", await reasonOf(response));
}

async function reasonOf(response) {
  const wait = response.headers.get("Retry-After");
  const after = wait ? ` Try again in ${wait} s.` : "";
  try {
    const { detail } = await response.json();
    return `${detail[0].toUpperCase()}${detail.slice(1)}.${after}`;
  } catch {
    return `The server answered with status ${response.status}.${after}`;
  }
}
