// The status page: the state of the router as it comes, drawn; and what people may do about it.

import { bytes, deviceBar, devicePast, duration, element, lanes } from "./draw.js";
import { ask, events, follow, hasKey, useKey } from "./talk.js";

const $ = (id) => document.getElementById(id);
const HISTORY_SECONDS = 600;
const MOMENTS_MAX = 300;

let told = null;                 // the last event
let moments = [];                // oldest first
const past = new Map();          // device -> points
let clockSkew = 0;               // the router's clock minus this one's, in seconds

const now = () => Date.now() / 1000 + clockSkew;
const clock = (at) => new Date((at - clockSkew) * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });

// --- what comes ---

function heard(event, data) {
  if (event !== "state") return;
  clockSkew = data.at - Date.now() / 1000;
  if (data.history) {            // the first of a connection is whole: what was known before is void
    past.clear();
    for (const [device, points] of Object.entries(data.history)) past.set(device, points);
    moments = [];
  }
  told = data;
  moments = moments.concat(data.moments).slice(-MOMENTS_MAX);
  for (const device of data.state.devices) notePast(device, data.at);
  draw(data.moments.length > 0 || Boolean(data.history));
}

function notePast(device, at) {
  const points = past.get(device.id) ?? [];
  const last = points.at(-1);
  if (!last || at - last[0] >= 1) points.push([Math.round(at), device.ours, device.free]);
  past.set(device.id, points.filter(([when]) => when >= at - HISTORY_SECONDS));
}

function said(kind, words) {
  const line = $("connection");
  const text = kind === "key" ? "needs a key" : words;
  if (line.textContent !== text) line.textContent = text;
  line.dataset.kind = kind === "live" ? "live" : kind === "key" ? "lost" : kind;
  if (kind === "key" && !$("key-dialog").open) {
    if (hasKey()) $("key-why").textContent = words;
    $("key-dialog").showModal();
  }
}

// --- drawing ---

function draw(withTimeline) {
  const { state } = told;
  $("about").textContent = `${state.version} · policy ${state.policy}${state.models_max > 0 ? ` · at most ${state.models_max} models` : ""}`;
  $("notes").replaceChildren(...state.notes.map((note) => element("li", {}, note)));
  drawDevices(state.devices);
  drawModels();
  drawRequests(told.requests ?? []);
  drawDownloads(told.downloads ?? []);
  if (withTimeline) drawTimeline();
  offerModels(state.models);
}

function drawDevices(devices) {
  $("devices").replaceChildren(...devices.map((device) => {
    const head = element("h3", {}, device.label,
      device.healthy
        ? element("span", {}, `${bytes(device.free)} of ${bytes(device.total)} free, a new model may have ${bytes(device.room)}`)
        : element("span", { class: "bad" }, device.error));
    if (device.utilisation_percent !== null) head.append(element("span", {}, `${device.utilisation_percent} % busy`));
    if (device.temperature_celsius !== null) head.append(element("span", {}, `${device.temperature_celsius} °C`));
    if (device.asleep) head.append(element("span", {}, "asleep"));
    if (device.shared_with.length) head.append(element("span", {}, `shared with ${device.shared_with.join(", ")}`));
    return element("div", { class: "device", "data-device": device.id }, head,
      ...(device.healthy ? deviceBar(device) : []), devicePast(device, past.get(device.id) ?? [], told.at, HISTORY_SECONDS));
  }));
}

// Cards are kept and filled anew: one that holds the focus must not vanish under the fingers.
const cards = new Map();

function drawModels() {
  const { models } = told.state;
  const wanted = $("filter").value.trim().toLowerCase();
  const onlyLoaded = $("only-loaded").checked;
  const shown = models.filter((model) => (!onlyLoaded || model.value !== "unloaded" || model.waiting) &&
    [model.id, ...model.aliases].some((name) => name.toLowerCase().includes(wanted)));
  const loaded = models.filter((model) => model.value === "loaded").length;
  $("model-count").textContent = `${loaded} of ${models.length} in memory`;
  $("no-models").hidden = shown.length > 0;
  const names = new Set(models.map((model) => model.id));
  for (const [name, card] of cards) {
    if (!names.has(name)) { card.root.remove(); cards.delete(name); }
  }
  const list = $("model-list");
  let place = list.firstElementChild;
  const visible = new Set(shown.map((model) => model.id));
  for (const model of models) {
    let card = cards.get(model.id);
    if (!card) cards.set(model.id, card = modelCard(model.id));
    card.fill(model);
    card.root.hidden = !visible.has(model.id);
    if (card.root === place) place = place.nextElementSibling;
    else list.insertBefore(card.root, place);
  }
}

function modelCard(name) {
  const part = {
    state: element("span", { class: "state" }), facts: element("p", { class: "facts" }), last: element("p", { class: "last" }),
    error: element("p", { class: "error", hidden: true }),
    load: element("button", { type: "button", class: "main", onclick: () => act(`load ${name}`, "POST", "models/load", { model: name }) }, "Load"),
    unload: element("button", { type: "button", onclick: () => act(`unload ${name}`, "POST", "models/unload", { model: name }) }, "Unload"),
    force: element("button", { type: "button", onclick: () => forceUnload(name) }, "Unload now"),
    pin: element("button", { type: "button" }, "Pin"),
    log: element("button", { type: "button", onclick: () => openLog(name) }, "Log"),
    why: element("button", { type: "button", onclick: () => openWhy(name) }, "Why?"),
  };
  for (const [word, button] of Object.entries(part)) {
    if (button.tagName === "BUTTON") button.setAttribute("aria-label", `${button.textContent}: ${name}`), button.dataset.do = word;
  }
  let shown = null;
  part.pin.addEventListener("click", () => act(`${shown.pinned ? "unpin" : "pin"} ${name}`, "POST", shown.pinned ? "models/unpin" : "models/pin", { model: name }));
  const root = element("li", { "data-model": name }, element("h3", {}, element("span", {}, name), part.state), part.facts, part.last, part.error,
    element("p", { class: "buttons" }, part.load, part.unload, part.force, part.pin, part.log, part.why));
  function fill(model) {
    shown = model;
    root.dataset.value = model.error && model.value === "unloaded" ? "failed" : model.value;
    setText(part.state, stateWords(model));
    setText(part.facts, factWords(model));
    setText(part.last, model.last ? `${model.last}, ${duration(now() - model.last_at)} ago` : "");
    part.error.hidden = !model.error;
    setText(part.error, model.error ?? "");
    const there = model.value !== "unloaded" && model.value !== "downloading";
    toggle(part.load, !there && model.value !== "downloading");
    toggle(part.unload, there);
    toggle(part.force, there && model.leases > 0);
    toggle(part.log, there || Boolean(model.error));
    setText(part.pin, model.pinned ? "Unpin" : "Pin");
    part.pin.setAttribute("aria-label", `${part.pin.textContent}: ${name}`);
    part.pin.setAttribute("aria-pressed", String(model.pinned));
  }
  return { root, fill };
}

/** Hide a button; where it had the focus, its neighbour gets it. */
function toggle(button, visible) {
  if (!visible && document.activeElement === button) {
    const next = [...button.parentElement.children].find((one) => one !== button && !one.hidden);
    button.hidden = true;
    next?.focus();
    return;
  }
  button.hidden = !visible;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function stateWords(model) {
  if (model.value === "loading" && model.progress) return `loading, about ${Math.round(model.progress * 100)} %`;
  const words = model.states.length ? [...new Set(model.states)].join(", ").replace("ready", "loaded").replace("starting", "loading") : model.value;
  const extra = [];
  if (model.pinned) extra.push("pinned");
  return [words, ...extra].join(", ");
}

function factWords(model) {
  const parts = [];
  parts.push(model.measured !== null ? `${bytes(model.measured)} measured, ${bytes(model.predicted)} reserved` : `needs ${bytes(model.predicted)}`);
  if (model.leases) parts.push(`${model.leases} request${model.leases > 1 ? "s" : ""}`);
  if (model.waiting) {
    const soon = model.expected_seconds !== null ? `, about ${duration(model.expected_seconds)}` : "";
    parts.push(`${model.waiting} waiting for ${model.reason}${soon}`);
  }
  if (model.idle_since !== null && !model.leases) parts.push(`idle for ${duration(now() - model.idle_since)}`);
  if (model.expires_at !== null) parts.push(`leaves in ${duration(model.expires_at - now())}`);
  if (model.load_seconds !== null && model.value === "unloaded") parts.push(`loads in ${model.load_seconds} s`);
  return parts.join(" · ");
}

function drawRequests(requests) {
  setText($("request-count"), requests.length ? String(requests.length) : "");
  $("no-requests").hidden = requests.length > 0;
  keyed($("request-list"), requests, (one) => one.id, (one) => {
    const words = element("span", { class: "grow" });
    const time = element("time");
    const end = element("button", { type: "button", "data-do": "cancel", "aria-label": `Cancel request ${one.id} of ${one.model ?? "no model"}`,
      onclick: () => act(`cancel request ${one.id}`, "DELETE", `requests/${encodeURIComponent(one.id)}`) }, "Cancel");
    return { root: element("li", {}, time, words, end), fill(it) {
      setText(time, duration(now() - it.since));
      setText(words, `${it.model ?? "–"} · ${it.path ?? ""} · ${it.state ?? it.action ?? ""}${it.bytes ? ` · ${bytes(it.bytes)} sent` : ""}${it.client ? ` · ${it.client}` : ""}`);
    } };
  });
}

function drawDownloads(downloads) {
  keyed($("download-list"), downloads, (one) => one.id, (one) => {
    const words = element("span", { class: "grow" });
    const bar = element("progress", { max: 1, value: 0, "aria-label": `Download of ${one.repo}` });
    const end = element("button", { type: "button", "data-do": "cancel", "aria-label": `Cancel the download of ${one.repo}`,
      onclick: () => act(`cancel ${one.repo}`, "POST", `models/downloads/${encodeURIComponent(one.id)}/cancel`) }, "Cancel");
    const forget = element("button", { type: "button", "data-do": "forget", "aria-label": `Take the download of ${one.repo} off the list`,
      onclick: () => act(`forget ${one.repo}`, "DELETE", `models/downloads/${encodeURIComponent(one.id)}`) }, "Forget");
    return { root: element("li", { "data-repo": one.repo }, words, bar, end, forget), fill(it) {
      const going = ["queued", "downloading", "waiting"].includes(it.state);
      bar.hidden = !going;
      toggle(end, going);
      toggle(forget, !going);
      bar.value = it.total_bytes ? it.done_bytes / it.total_bytes : 0;
      const pace = going && it.bytes_per_second ? `, ${bytes(it.bytes_per_second)}/s` : "";
      setText(words, `${it.repo}: ${it.state}, ${bytes(it.done_bytes)} of ${bytes(it.total_bytes)}${pace}${it.error ? `; ${it.error.message ?? it.error}` : ""}`);
    } };
  });
}

const kept = new WeakMap();

/** Fill a list from rows; a row with the same key keeps its element, and with it the focus. */
function keyed(list, rows, keyOf, make) {
  if (!kept.has(list)) kept.set(list, new Map());
  const known = kept.get(list);
  const keys = new Set(rows.map(keyOf));
  for (const [key, one] of known) {
    if (!keys.has(key)) { one.root.remove(); known.delete(key); }
  }
  let place = list.firstElementChild;
  for (const row of rows) {
    let one = known.get(keyOf(row));
    if (!one) known.set(keyOf(row), one = make(row));
    one.fill(row);
    if (one.root === place) place = place.nextElementSibling;
    else list.insertBefore(one.root, place);
  }
}

function drawTimeline() {
  $("no-moments").hidden = moments.length > 0;
  $("timeline").replaceChildren(...moments.slice(-100).reverse().map((moment) =>
    element("li", { "data-kind": moment.kind }, element("time", { datetime: new Date(moment.at * 1000).toISOString() }, clock(moment.at)),
      element("span", { class: "grow" }, moment.text))));
  drawLanes();
}

function drawLanes() {
  const picture = lanes(moments, now(), HISTORY_SECONDS);
  $("lanes").replaceChildren(...(picture ? [picture] : []));
}

// --- what people do ---

async function act(what, method, path, body) {
  try {
    await ask(method, path, body);
    toast(`${what}: done`);
    return true;
  } catch (error) {
    toast(`Could not ${what}: ${error.message}`);
    return false;
  }
}

let toastTimer = 0;
function toast(words) {
  const line = $("toast");
  line.hidden = false;
  line.textContent = words;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { line.hidden = true; }, 6000);
}

function forceUnload(name) {
  if (confirm(`Unload ${name} now? Its requests in flight end with an error.`)) {
    act(`unload ${name}`, "POST", "models/unload", { model: name, force: true });
  }
}

let logAbort = null;

async function openLog(name) {
  $("log-title").textContent = `Log of ${name}`;
  $("log-text").textContent = "";
  $("log-dialog").showModal();
  logAbort?.abort();
  const mine = logAbort = new AbortController();
  try {
    const response = await ask("GET", `models/log?model=${encodeURIComponent(name)}&lines=200&follow=1`, undefined, mine.signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const box = $("log-text");
      box.textContent = (box.textContent + value).slice(-200_000);
      if ($("log-follow").checked) box.scrollTop = box.scrollHeight;
    }
  } catch (error) {
    if (!mine.signal.aborted) $("log-text").textContent += `\n${error.message}\n`;
  }
}

async function openWhy(name) {
  $("why-title").textContent = `Why: ${name}`;
  $("why-text").textContent = "…";
  $("why-dialog").showModal();
  try {
    const response = await ask("GET", `explain?model=${encodeURIComponent(name)}`);
    const answer = await response.json();
    $("why-text").textContent = [answer.text, ...(answer.warnings ?? [])].join("\n");
  } catch (error) {
    $("why-text").textContent = error.message;
  }
}

// --- the chat ---

let conversation = [];
let chatAbort = null;

function offerModels(models) {
  const select = $("chat-model");
  const names = models.map((model) => model.id);
  if (names.join("\n") === [...select.options].map((one) => one.value).join("\n")) return;
  const chosen = select.value || models.find((model) => model.value === "loaded")?.id;
  select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  if (names.includes(chosen)) select.value = chosen;
}

function chatLine(who) {
  const text = element("span");
  const line = element("p", {}, element("span", { class: "who" }, who), text);
  $("chat-log").append(line);
  return { line, text };
}

async function send(event) {
  event.preventDefault();
  const text = $("chat-text").value.trim();
  if (!text || chatAbort) return;
  $("chat-text").value = "";
  const model = $("chat-model").value;
  conversation.push({ role: "user", content: text });
  chatLine("you").text.textContent = text;
  const { line, text: answer } = chatLine(model);
  const mine = chatAbort = new AbortController();
  $("chat-send").disabled = true;
  $("chat-stop").disabled = false;
  $("chat-note").textContent = "waiting";
  const begun = performance.now();
  let full = "", fresh = "", pieces = 0;
  const words = answer.appendChild(document.createTextNode(""));
  // Once a frame, and only what is new: an answer may come faster than it can be laid out.
  function show() {
    if (!fresh) return;
    words.appendData(fresh);
    fresh = "";
    $("chat-log").scrollTop = $("chat-log").scrollHeight;
  }
  try {
    const response = await ask("POST", "v1/chat/completions", { model, messages: conversation, stream: true }, mine.signal);
    for await (const { data } of events(response, mine.signal)) {
      if (data === "[DONE]") break;
      const piece = JSON.parse(data);
      if (piece.error) throw new Error(piece.error.message);
      const delta = piece.choices?.[0]?.delta ?? {};
      if (delta.reasoning_content) {
        line.insertBefore(element("span", { class: "thought" }, delta.reasoning_content), answer);
      }
      if (delta.content) {
        if (!fresh) requestAnimationFrame(show);
        full += delta.content;
        fresh += delta.content;
        pieces += 1;
      }
    }
    $("chat-note").textContent = mine.signal.aborted ? "stopped" : `${pieces} pieces in ${((performance.now() - begun) / 1000).toFixed(1)} s`;
  } catch (error) {
    $("chat-note").textContent = mine.signal.aborted ? "stopped" : error.message;
  } finally {
    show();
    if (full) conversation.push({ role: "assistant", content: full });
    chatAbort = null;
    $("chat-send").disabled = false;
    $("chat-stop").disabled = true;
  }
}

// --- wiring ---

$("filter").addEventListener("input", () => told && drawModels());
$("only-loaded").addEventListener("change", () => told && drawModels());
$("unload-all").addEventListener("click", () => {
  if (confirm("Unload every model? Requests in flight may end first.")) act("unload all models", "POST", "models/unload-all", {});
});
$("chat-form").addEventListener("submit", send);
$("chat-text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
});
$("chat-stop").addEventListener("click", () => chatAbort?.abort());
$("chat-clear").addEventListener("click", () => {
  chatAbort?.abort();
  conversation = [];
  $("chat-log").replaceChildren();
  $("chat-note").textContent = "";
});
$("download-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const quantization = $("download-quantization").value.trim();
  const body = { repo: $("download-repo").value.trim(), ...(quantization ? { quantization } : {}) };
  if (await act(`download ${body.repo}`, "POST", "models/download", body)) $("download-repo").value = "";
});
$("log-close").addEventListener("click", () => $("log-dialog").close());
$("log-dialog").addEventListener("close", () => logAbort?.abort());
$("why-close").addEventListener("click", () => $("why-dialog").close());
$("key-open").addEventListener("click", () => $("key-dialog").showModal());
$("key-dialog").addEventListener("close", () => {
  if ($("key-dialog").returnValue !== "use") return;
  useKey($("key-value").value.trim());
  $("key-value").value = "";
  dispatchEvent(new Event("key-given"));
});
setInterval(() => {  // times go on while nothing happens
  if (!told || document.hidden) return;
  drawModels();
  drawRequests(told.requests ?? []);
}, 1000);
setInterval(() => told && !document.hidden && drawLanes(), 5000);
follow("status/sse", heard, said);
