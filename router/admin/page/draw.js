// Pictures from numbers: a device's bar and its past, and what was in memory when. Nothing here asks or keeps anything.

const SVG = "http://www.w3.org/2000/svg";

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  return filled(made, attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function bytes(count) {
  if (count === null || count === undefined) return "unknown";
  const mib = count / 2 ** 20;
  return Math.abs(mib) >= 1000 ? `${(mib / 1024).toFixed(1)}\u00a0GiB` : `${mib.toFixed(mib < 10 ? 1 : 0)}\u00a0MiB`;
}

export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  // No-break spaces: a number does not part from its unit.
  if (s < 60) return `${s}\u00a0s`;
  if (s < 3600) return `${Math.floor(s / 60)}\u00a0min ${s % 60}\u00a0s`;
  return `${Math.floor(s / 3600)}\u00a0h ${Math.floor((s % 3600) / 60)}\u00a0min`;
}

/** The same colour for the same model, wherever it is shown. */
export function colour(model) {
  let hash = 7;
  for (const char of model) hash = (hash * 31 + char.codePointAt(0)) % 3600;
  return `hsl(${(hash * 137) % 360} 55% 46%)`;
}

/** The shares of a device in the order in which they stand in its bar: [{words, bytes, colour, kind}]. */
export function shares(device) {
  const found = device.instances.map((one) => ({
    words: `${one.model}${one.state === "ready" ? "" : ` (${one.state})`}`,
    bytes: one.measured ?? 0, colour: colour(one.model), kind: "ours",
  })).filter((one) => one.bytes > 0);
  if (device.others > 0) found.push({ words: "other programs", bytes: device.others, colour: "var(--others)", kind: "others" });
  const promised = Math.max(0, Math.min(device.promised, device.free ?? 0));
  if (promised > 0) found.push({ words: "promised, not taken yet", bytes: promised, colour: "var(--promised)", kind: "promised" });
  const free = Math.max(0, (device.free ?? 0) - promised);
  const margin = Math.min(device.margin, free);
  if (free - margin > 0) found.push({ words: "free", bytes: free - margin, colour: "var(--free)", kind: "free" });
  if (margin > 0) found.push({ words: "margin", bytes: margin, colour: "var(--margin)", kind: "margin" });
  return found;
}

export function deviceBar(device) {
  const parts = shares(device);
  const total = device.total || 1;
  const words = parts.map((part) => `${part.words} ${bytes(part.bytes)}`).join(", ");
  const bar = svg("svg", { class: "bar", viewBox: "0 0 1000 30", preserveAspectRatio: "none", role: "img", "aria-label": `${device.label}: ${words}` },
    svg("rect", { width: 1000, height: 30, fill: "var(--free)" }));
  let at = 0;
  for (const part of parts) {
    const width = (part.bytes / total) * 1000;
    bar.append(svg("rect", { x: at, width, height: 30, fill: part.colour, stroke: "var(--card)", "stroke-width": 1, "vector-effect": "non-scaling-stroke", "data-kind": part.kind },
      svg("title", {}, `${part.words}: ${bytes(part.bytes)}`)));
    at += width;
  }
  const legend = element("div", { class: "legend" }, ...parts.map((part) => {
    const swatch = svg("svg", { width: 12, height: 12, "aria-hidden": "true" }, svg("rect", { width: 12, height: 12, rx: 2, fill: part.colour, stroke: "var(--soft)" }));
    return element("span", {}, swatch, ` ${part.words} ${bytes(part.bytes)}`);
  }));
  return [bar, legend];
}

/** The span to show: at most `most` seconds, and less while there is less to show. */
const span = (first, now, most) => [60, 120, 300, 600].find((one) => one >= now - first) ?? most;

/** The last minutes: what is ours as an area, all that is used as a line. `points` are [unix, ours, free or null]. */
export function devicePast(device, points, now, most = 600) {
  const seconds = span(points[0]?.[0] ?? now, now, most);
  const x = (at) => 1000 - ((now - at) / seconds) * 1000;
  const y = (size) => 40 - (size / (device.total || 1)) * 38;
  const shown = points.filter(([at]) => at >= now - seconds);
  const picture = svg("svg", { class: "past", viewBox: "0 0 1000 42", preserveAspectRatio: "none", role: "img",
    "aria-label": `${device.label}: memory used over the last ${duration(seconds)}` });
  picture.append(svg("line", { x1: 0, x2: 1000, y1: 40, y2: 40, stroke: "var(--line)", "vector-effect": "non-scaling-stroke" }));
  if (shown.length < 2) return picture;
  const area = shown.map(([at, ours]) => `${x(at).toFixed(1)},${y(ours).toFixed(1)}`);
  picture.append(svg("polygon", { points: `${x(shown[0][0]).toFixed(1)},40 ${area.join(" ")} ${x(shown.at(-1)[0]).toFixed(1)},40`, fill: "var(--accent)", "fill-opacity": .3 }));
  // A gap where the device could not be measured.
  let run = [];
  const runs = [run];
  for (const [at, , free] of shown) {
    if (free === null) runs.push(run = []);
    else run.push(`${x(at).toFixed(1)},${y(device.total - free).toFixed(1)}`);
  }
  for (const one of runs) {
    if (one.length > 1) picture.append(svg("polyline", { points: one.join(" "), fill: "none", stroke: "var(--accent)", "stroke-width": 1.5, "vector-effect": "non-scaling-stroke" }));
  }
  return picture;
}

/** When each instance was in memory: [{model, from, ready, to, why}] out of the moments, oldest first. */
export function stays(moments) {
  const open = new Map();
  const all = [];
  for (const moment of moments) {
    if (!moment.instance) continue;
    let stay = open.get(moment.instance);
    if (!stay && (moment.kind === "load" || moment.kind === "adopted")) {
      stay = { model: moment.model, from: moment.at, ready: moment.kind === "adopted" ? moment.at : null, to: null, why: "" };
      open.set(moment.instance, stay);
      all.push(stay);
    }
    if (!stay) continue;
    if (moment.kind === "ready") stay.ready = moment.at;
    if (moment.kind === "leave") stay.why = moment.text;
    if (moment.kind === "gone" || moment.kind === "failed") {
      stay.to = moment.at;
      stay.why ||= moment.text;
      open.delete(moment.instance);
    }
  }
  return all;
}

/** Lanes of the last minutes, a row for each model that was in memory. */
export function lanes(moments, now, most = 600) {
  const first = moments.find((moment) => moment.instance && moment.at >= now - most)?.at ?? now;
  const seconds = span(first, now, most);
  const shown = stays(moments).filter((stay) => (stay.to ?? now) >= now - seconds);
  const models = [...new Set(shown.map((stay) => stay.model))].slice(-12);
  if (!models.length) return null;
  const left = 170, width = 1000, row = 22, height = models.length * row + 22;
  const x = (at) => left + (Math.max(0, at - (now - seconds)) / seconds) * (width - left - 4);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Which models were in memory in the last ${duration(seconds)}: ${models.join(", ")}` });
  models.forEach((model, index) => {
    const y = index * row;
    const name = model.length > 24 ? `${model.slice(0, 23)}…` : model;
    picture.append(svg("text", { x: 0, y: y + 15 }, name),
      svg("line", { x1: left, x2: width, y1: y + row - 1, y2: y + row - 1, stroke: "var(--line)" }));
    for (const stay of shown.filter((one) => one.model === model)) {
      const from = x(stay.from), to = x(stay.to ?? now), ready = x(stay.ready ?? stay.to ?? now);
      const words = `${model}: ${duration((stay.to ?? now) - stay.from)}${stay.why ? `; ${stay.why}` : ""}`;
      picture.append(svg("g", {}, svg("title", {}, words),
        svg("rect", { x: from, y: y + 4, width: Math.max(1.5, ready - from), height: 14, fill: "none", stroke: colour(model), "stroke-dasharray": "3 2" }),
        svg("rect", { x: ready, y: y + 4, width: Math.max(stay.ready ? 1.5 : 0, to - ready), height: 14, rx: 2, fill: colour(model) })));
    }
  });
  for (const ago of [seconds, seconds / 2, 0]) {
    const at = x(now - ago);
    picture.append(svg("text", { class: "axis", x: ago ? at : at - 22, y: height - 5 }, ago ? `${duration(ago)} ago` : "now"));
  }
  return picture;
}
