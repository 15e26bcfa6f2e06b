// Requests to this server, and to no other: errors in words, streams as events, the key where one is asked for.

const KEY = "latentforge.api_key";

/** What the server refused or failed to do, in words. */
export class ApiError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let askForKey = async () => null;
let asking = null;
let wasDeclined = false;

/** Says how to ask the person for the API key: gets a message, gives the key, or null where there is none. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

async function newKey(message, isQuiet) {
  if (isQuiet && wasDeclined && !asking) return null;
  asking ??= askForKey(message).finally(() => { asking = null; });
  const key = await asking;
  wasDeclined = key === null;
  if (key !== null) sessionStorage.setItem(KEY, key);
  return key;
}

async function send(path, options, isQuiet) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit", redirect: "error" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server does not answer. It may have stopped, or the network is gone.");
    }
    if (response.ok) return response;
    const failure = await failureOf(response);
    if (response.status !== 401) throw failure;
    // Another request may have got a key meanwhile.
    if (sessionStorage.getItem(KEY) !== key) continue;
    if (await newKey(failure.message, isQuiet) === null) throw failure;
  }
}

async function failureOf(response) {
  let error = null;
  try {
    ({ error } = await response.json());
  } catch {
    // A proxy's page, or nothing.
  }
  let message = error?.message ?? `The server answered ${response.status}.`;
  const seconds = response.headers.get("retry-after");
  if (seconds !== null && response.status === 429) message += ` Try again in ${seconds} s.`;
  return new ApiError(message, response.status, error?.code ?? null);
}

function posted(body, signal) {
  return { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal };
}

/** An answer's JSON. `isQuiet`: nobody clicked for it, so that nobody is asked for a key twice. */
export async function get(path, { signal, isQuiet = true } = {}) {
  return (await send(path, { signal }, isQuiet)).json();
}

/** The figures of GET /metrics that have no labels, by name. */
export async function getMetrics() {
  const lines = (await (await send("metrics", {}, true)).text()).split("\n");
  return new Map(lines.map((line) => line.split(" ")).filter(([name, value]) => name && name !== "#" && value)
    .map(([name, value]) => [name, Number(value)]));
}

export async function post(path, body, { signal } = {}) {
  return (await send(path, posted(body, signal), false)).json();
}

/** The JSON of each server-sent event of an answer until [DONE]; an event that is an error is thrown. */
export async function* stream(path, body, { signal } = {}) {
  const response = await send(path, posted(body, signal), false);
  let isDone = false;
  for await (const data of eventsOf(response.body)) {
    if (data === "[DONE]") {
      isDone = true;
      break;
    }
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(event.error.message, 200, event.error.code);
    yield event;
  }
  if (!isDone) throw new ApiError("The answer broke off: the server closed the connection before its end.");
}

async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        throw new ApiError("The answer broke off: the connection to the server is gone.");
      });
      if (done) return;
      buffer += value;
      const lines = buffer.split(/\r\n|\n|\r(?!$)/);
      buffer = lines.pop();
      for (const line of lines) {
        if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
