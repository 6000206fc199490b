// Questions to the server, and what goes wrong with them in words.

const PATIENCE_MS = 60_000;
const KEY = "limbeck-key";

const TITLES = {
  400: "This is not an image that can be read.",
  401: "This server wants a key.",
  403: "This key may not ask.",
  413: "This image is too large.",
  415: "This kind of image is not taken.",
  429: "Too many questions at once.",
  503: "The server is busy.",
  504: "The server is busy.",
};

/** Why there is no answer: a title, the reason, the HTTP status (0: none came). */
export class Refused extends Error {
  constructor(status, title, reason = "") {
    super(reason);
    Object.assign(this, { status, title });
  }

  /** Whether the same question may well be answered later. */
  get passing() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** The JSON answer to `path`; with a body it is posted. Throws Refused, or AbortError once `signal` says so. */
export async function ask(path, { query = {}, body, signal } = {}) {
  const key = sessionStorage.getItem(KEY);
  const deadline = AbortSignal.timeout(PATIENCE_MS);
  let response;
  try {
    response = await fetch(`${path}?${new URLSearchParams(query)}`, {
      method: body ? "POST" : "GET",
      headers: key ? { Authorization: `Bearer ${key}` } : {},
      body,
      signal: signal ? AbortSignal.any([signal, deadline]) : deadline,
    });
    if (response.ok) return await response.json();
  } catch (error) {
    if (signal?.aborted) throw error;
    if (deadline.aborted) throw new Refused(0, "The server does not answer.", "It had a minute's time.");
    throw new Refused(0, "The server cannot be reached.", "It may have stopped, or the connection is gone.");
  }
  if (response.status === 401) throw new Refused(401, key ? "This key is not known." : TITLES[401], "Write it above.");
  throw new Refused(response.status, TITLES[response.status] ?? "This did not work.", await reasonOf(response));
}

async function reasonOf(response) {
  const wait = response.headers.get("Retry-After");
  const after = wait ? ` Ask again in ${wait} s.` : "";
  try {
    const { detail } = await response.json();
    return `${detail[0].toUpperCase()}${detail.slice(1)}.${after}`;
  } catch {
    return `It answered with status ${response.status}.${after}`;
  }
}
