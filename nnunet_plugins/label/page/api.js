/** Requests to the server that gave this page, with its token. */

const PLACE = "mambamed-token";

/** What the server says when it refuses. */
export class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

/** Take the token from the address, where it is not left. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) setToken(given);
  if (location.hash) history.replaceState(null, "", location.pathname);
}

export function setToken(token) {
  sessionStorage.setItem(PLACE, token.trim());
}

export function forgetToken() {
  sessionStorage.removeItem(PLACE);
}

/**
 * One request; gives the answer.
 * @param {string} path
 * @param {{method?: string, query?: object, json?: object, form?: object}} options
 */
export async function request(path, { method = "GET", query = {}, json, form } = {}) {
  const headers = {};
  const token = sessionStorage.getItem(PLACE);
  if (token) headers.Authorization = `Bearer ${token}`;
  let body;
  if (json) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(json);
  } else if (form) {
    body = new FormData();
    for (const [key, value] of Object.entries(form)) body.append(key, value);
  }
  const text = new URLSearchParams(Object.entries(query).flatMap(pairs)).toString();
  let answer;
  try {
    answer = await fetch(text ? `${path}?${text}` : path, { method, headers, body });
  } catch {
    throw new Refused(0, "The server does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  const error = new Refused(answer.status, await sentenceOf(answer));
  if (answer.status === 401) document.dispatchEvent(new CustomEvent("token-needed"));
  throw error;
}

/** One request; gives what the JSON of the answer holds. */
export async function ask(path, options) {
  return (await request(path, options)).json();
}

/** A picture as it is, colours unchanged. */
export async function picture(path, query) {
  const blob = await (await request(path, { query })).blob();
  return createImageBitmap(blob, { premultiplyAlpha: "none", colorSpaceConversion: "none" });
}

function pairs([key, value]) {
  return Array.isArray(value) ? value.map((one) => [key, one]) : [[key, value]];
}

async function sentenceOf(answer) {
  try {
    const { detail } = await answer.json();
    if (typeof detail === "string") return detail;
  } catch {
    // no JSON: a proxy answered
  }
  return `The server answered ${answer.status} ${answer.statusText}.`;
}
