// All that goes to and comes from the router: JSON requests, its event streams, the key.

let key = sessionStorage.getItem("llama-router key") ?? "";

export const hasKey = () => key !== "";

export function useKey(value) {
  key = value;
  if (value) sessionStorage.setItem("llama-router key", value);
  else sessionStorage.removeItem("llama-router key");
}

/** The router refused. `status` is that of HTTP. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** A request whose answer is awaited as a Response that is good; Refused says what the router said. */
export async function ask(method, path, body, signal) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  if (response.ok) return response;
  const text = await response.text();
  let message = `${response.status} ${response.statusText}`;
  try {
    message = JSON.parse(text).error.message ?? message;
  } catch { /* not in the router's shape */ }
  throw new Refused(response.status, message);
}

/**
 * The events of a text/event-stream as {event, data}, up to its end or until `signal` says stop: at once, also where
 * much has come already. EventSource would do, but cannot send a key.
 */
export async function* events(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  signal?.addEventListener("abort", () => reader.cancel().catch(() => {}));
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const parts = rest.split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const event = { event: "message", data: [] };
        for (const line of part.split(/\r?\n/)) {
          if (line.startsWith("event:")) event.event = line.slice(6).trim();
          else if (line.startsWith("data:")) event.data.push(line.slice(5).replace(/^ /, ""));
        }
        if (signal?.aborted) return;
        if (event.data.length) yield { event: event.event, data: event.data.join("\n") };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Follow an event stream for ever. `heard(data)` for each event, `said(kind, words)` of the connection itself. */
export async function follow(path, heard, said) {
  for (let wait = 500; ; wait = Math.min(wait * 2, 10_000)) {
    try {
      const response = await ask("GET", path, undefined, undefined);
      for await (const { event, data } of events(response)) {
        try {
          heard(event, JSON.parse(data));
        } catch (error) {
          console.error(error);  // a mistake of the page, and no reason to connect again
        }
        said("live", "live");
        wait = 500;
      }
      said("lost", "reconnecting");
    } catch (error) {
      if (error.status === 401 || error.status === 403) {
        said("key", error.message);
        await new Promise((resolve) => addEventListener("key-given", resolve, { once: true }));
        wait = 250;
        continue;
      }
      said("lost", error.status ? error.message : "the router does not answer; trying again");
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}
