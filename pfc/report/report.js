"use strict";
(() => {
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("pfc-data").textContent), runs = data.runs;
const last = (list) => list[list.length - 1], known = (v) => typeof v === "number";
const epochs = [...new Set(runs.flatMap((r) => r.epochs.map((e) => e.epoch)))].sort((a, b) => a - b);
const MANY = 20; // classes that are still named on a map
const depth = Math.max(...runs.map((r) => r.layers.length));
const names = Object.keys(data.columns);
const others = names.filter((n) => !["pfc1", "pfc2", "pfc3"].includes(n));
const state = {
  at: epochs.length - 1, layer: 0, run: 0, on: new Set(runs.keys()), x: "path", log: true,
  column: ["nc1", "cdnv", ...others].find((n) => others.includes(n)), test: true,
};

// Words and elements: every name goes in as text, never as markup.
const fmt = (v, digits = 4) => (known(v) ? String(Number(v.toPrecision(digits))) : "-");
const short = (t, most = 26) => (t.length <= most ? t : `${t.slice(0, most / 2 - 1)}…${t.slice(1 - most / 2)}`);
function make(tag, attributes = {}, ...children) {
  const svg = /^(svg|g|path|line|polyline|circle|rect|text|image|title)$/.test(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
const colour = (i) => `var(--run-${i % 8})`;
const SHAPES = ["M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0", "M0-5 4.6 3.5H-4.6Z", "M-3.7-3.7h7.4v7.4h-7.4Z", "M0-5 5 0 0 5-5 0Z", "M0 5-4.6-3.5H4.6Z", "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3Z"];
const shape = (i, x, y, size = 1, more = {}) => make("path", {
  d: SHAPES[(i + Math.floor(i / 8)) % SHAPES.length], transform: `translate(${x.toFixed(1)} ${y.toFixed(1)}) scale(${size})`, fill: colour(i), ...more,
});
const key = (i, more) => make("span", { class: "key" }, make("svg", { viewBox: "-7 -7 14 14", "aria-hidden": "true" }, shape(i, 0, 0, 1.2, more)));
const title = (n) => [/^(pfc|nc)\d/.test(n) ? n.replace(/^[a-z]+\d/, (t) => t.toUpperCase()).replaceAll("_", " ") : n, data.columns[n].title];

// What is shown: the epoch of each run that was measured last before the chosen one.
const upTo = (list, epoch) => list.findLast((e) => e.epoch <= epoch) ?? list[0];
const now = (run) => upTo(run.epochs, epochs[state.at]);
const shown = () => [...runs.keys()].filter((i) => state.on.has(i));
const layerOf = (run) => Math.min(state.layer, run.layers.length - 1);
const isLast = (run) => now(run) === last(run.epochs);
const testsOf = (run) => (state.test && isLast(run) ? run.tests : []);

// Where layers stand across: by number, or inside a run of one shape by their place on its path.
function placed(run, epoch) {
  const positions = epoch.columns.position ?? [], L = run.layers.length;
  const x = run.layers.map((_, l) => l);
  for (const [start, n] of run.segments) {
    const own = positions.slice(start, start + n);
    if (own.length === n && own.every(known)) own.forEach((p, l) => { x[start + l] = start + p * (n - 1); });
  }
  return x.map((v) => (L > 1 ? v / (L - 1) : 0));
}
function across(run, epoch) {
  return state.x === "path" ? placed(run, epoch) : run.layers.map((_, l) => (depth > 1 ? l / (depth - 1) : 0));
}
const unplaced = (run) => run.segments.some(([s, n]) => !(now(run).columns.position ?? []).slice(s, s + n).every(known));
// The straight line of a segment: t is a place on the path, so between layers it goes as their places do.
function lineAcross(run, epoch, [start, n], t) {
  const own = (epoch.columns.position ?? []).slice(start, start + n), x = across(run, epoch);
  if (!own.every(known)) return x[start] + t * (x[start + n - 1] - x[start]);
  let l = 0;
  while (l < n - 2 && own[l + 1] < t) l++;
  const part = own[l + 1] > own[l] ? Math.min(1, Math.max(0, (t - own[l]) / (own[l + 1] - own[l]))) : 0;
  return x[start + l] + part * (x[start + l + 1] - x[start + l]);
}

// Scales tell true numbers: a metric that rises to 1 is drawn by its distance from it, and still says itself.
function scale(values, column, top, bottom) {
  values = values.filter(known);
  const { rises, highest, collapsed } = data.columns[column];
  const mirrored = rises && known(highest), away = (v) => (mirrored ? Math.max(0, highest - v) : v);
  const above = values.map(away).filter((v) => v > 1e-12);
  if (state.log && known(collapsed) && above.length) return logarithmic();
  let lo = Math.min(...values), hi = Math.max(...values);
  if (!values.length) [lo, hi] = [0, 1];
  const room = (hi - lo) * 0.06 || Math.abs(hi) * 0.1 || 0.1;
  [lo, hi] = [lo - room, hi + room];
  const raw = (hi - lo) / 4, base = 10 ** Math.floor(Math.log10(raw));
  const step = base * [1, 2, 5, 10].find((m) => m * base >= raw), ticks = [];
  for (let k = Math.ceil(lo / step); k * step <= hi; k++) ticks.push(k * step);
  const y = (v) => bottom + ((v - lo) / (hi - lo)) * (top - bottom);
  return { y, ticks: ticks.map((v) => [y(v), fmt(v, 6)]) };

  function logarithmic() {
    const zero = values.some((v) => away(v) <= 1e-12), gap = zero ? 22 : 0;
    let lo = Math.log10(Math.min(...above)), hi = Math.log10(Math.max(...above));
    const room = Math.max((hi - lo) * 0.06, 0.04);
    [lo, hi] = [lo - room, hi + room];
    const [far, near] = mirrored ? [bottom, top + gap] : [top, bottom - gap];
    const at = (v) => near + ((Math.log10(v) - lo) / (hi - lo)) * (far - near);
    const y = (v) => (away(v) > 1e-12 ? at(away(v)) : mirrored ? top : bottom), ticks = [];
    const steps = hi - lo > 2.2 ? [1] : hi - lo > 0.9 ? [1, 2, 5] : hi - lo > 0.35 ? [1, 1.5, 2, 3, 5, 7] : [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9];
    for (let e = Math.floor(lo); e <= Math.ceil(hi); e++) for (const m of steps) {
      const v = m * 10 ** e;
      if (Math.log10(v) >= lo && Math.log10(v) <= hi) ticks.push([at(v), fmt(mirrored ? highest - v : v, 8)]);
    }
    if (zero) ticks.unshift([mirrored ? top : bottom, fmt(mirrored ? highest : 0)]);
    return { y, ticks: apart(ticks, 15) };
  }
}
const apart = (ticks, least) => ticks.reduce((kept, t) => (kept.every((k) => Math.abs(k[0] - t[0]) >= least) ? [...kept, t] : kept), []);

// A chart: caption with its downloads, a plot that keys and pointer move through, and a line of numbers.
const charts = [];
function chart(place, { caption, file, height, slider, draw }) {
  const plot = make("div", { class: "plot" }), read = make("p", { class: "read" });
  const words = make("b"), more = make("span"), tools = make("span", { class: "tools" });
  const figure = make("figure", {}, make("figcaption", {}, words, more, tools), plot, read);
  const self = { figure, plot, read, rows: [], marks: [], height };
  if (slider) {
    for (const [n, v] of Object.entries({ role: "slider", tabindex: 0, "aria-valuemin": 1, "aria-orientation": "horizontal" })) plot.setAttribute(n, v);
    plot.addEventListener("keydown", (event) => move(event, slider));
    plot.addEventListener("pointermove", (event) => self.point(event));
    plot.addEventListener("pointerdown", (event) => self.point(event));
  } else plot.setAttribute("role", "img");
  self.point = (event) => {
    const box = plot.getBoundingClientRect(), factor = self.width / box.width;
    const [x, y] = [(event.clientX - box.left) * factor, (event.clientY - box.top) * factor];
    const nearest = self.marks.reduce((best, m) => { const d = (m.x - x) ** 2 + ((m.y ?? y) - y) ** 2 / 16; return !best || d < best[0] ? [d, m] : best; }, null);
    if (nearest) set(nearest[1].set);
  };
  self.draw = () => {
    self.width = Math.round(Math.max(260, figure.clientWidth || 520));
    self.rows = []; self.marks = [];
    const [name, rest] = caption();
    words.textContent = name; more.textContent = rest;
    const { parts, height: own, says, value, max, told, numbers } = draw(self);
    const svg = make("svg", { viewBox: `0 0 ${self.width} ${own ?? height}`, "aria-hidden": "true" }, ...parts);
    plot.replaceChildren(svg);
    plot.setAttribute("aria-label", says);
    if (slider) { plot.setAttribute("aria-valuenow", value); plot.setAttribute("aria-valuemax", max); plot.setAttribute("aria-valuetext", told); }
    read.replaceChildren(...numbers);
    for (const b of tools.children) b.setAttribute("aria-label", `${b.textContent}: ${name} ${rest}`);
  };
  for (const kind of ["SVG", "PNG", "CSV"]) {
    const button = make("button", { type: "button" }, kind);
    button.addEventListener("click", () => save[kind](self, file()));
    tools.append(button);
  }
  place.append(figure);
  charts.push(self);
}
function move(event, what) {
  const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -1e9, End: 1e9 }[event.key];
  if (!by) return;
  event.preventDefault();
  set(what === "layer" ? { layer: state.layer + by } : { at: state.at + by });
}
const legend = (i, ...children) => make("span", {}, key(i), ...children);

const EDGE = { left: 48, right: 12, top: 12, bottom: 22 };
function frame(self, ticks, y) {
  const right = self.width - EDGE.right, bottom = self.height - EDGE.bottom;
  const parts = y.flatMap(([at, label]) => [
    make("line", { class: "grid", x1: EDGE.left, x2: right, y1: at, y2: at }),
    make("text", { class: "end", x: EDGE.left - 7, y: at + 4 }, label),
  ]);
  for (const [x, label] of apart(ticks, 34)) parts.push(make("text", { class: x > right - 14 ? "end" : "mid", x: x > right - 14 ? right + 4 : x, y: bottom + 17 }, label));
  return parts;
}
const joined = (points, attributes) => {
  const parts = [];
  for (let run = [], i = 0; i <= points.length; i++) {
    if (i < points.length && points[i]) run.push(points[i]);
    else { if (run.length > 1) parts.push(make("polyline", { ...attributes, points: run.map((p) => p.map((v) => v.toFixed(1)).join(",")).join(" ") })); run = []; }
  }
  return parts;
};

function overLayers(self, column) {
  const top = EDGE.top, bottom = self.height - EDGE.bottom, wide = self.width - EDGE.left - EDGE.right;
  const some = shown().map((i) => ({ i, run: runs[i], epoch: now(runs[i]) })).filter((s) => s.epoch.columns[column]);
  const lines = (s) => s.epoch.lines.map((l) => l[column] ?? []);
  const all = some.flatMap((s) => [...s.epoch.columns[column], ...lines(s).flat(), ...testsOf(s.run).flatMap((t) => t.columns[column] ?? [])]);
  const { y, ticks } = scale(all, column, top, bottom), px = (x) => EDGE.left + x * wide;
  const under = state.x === "path" ? [0, 0.25, 0.5, 0.75, 1].map((v) => [px(v), fmt(v)]) : Array.from({ length: depth }, (_, l) => [px(depth > 1 ? l / (depth - 1) : 0), String(l + 1)]);
  const parts = frame(self, under, ticks), numbers = [], tests = [], says = [], told = [];
  for (const { i, run, epoch } of some) {
    const x = across(run, epoch), values = epoch.columns[column], at = layerOf(run);
    const point = (vs) => vs.map((v, l) => (known(v) ? [px(x[l]), y(v)] : null));
    run.segments.forEach((segment, k) => {
      const line = lines({ epoch })[k] ?? [];
      parts.push(...joined(line.map((v, j) => (known(v) ? [px(lineAcross(run, epoch, segment, j / (line.length - 1))), y(v)] : null)), { class: "dashed", stroke: colour(i) }));
    });
    parts.push(...joined(point(values), { class: "line", stroke: colour(i) }));
    for (const test of testsOf(run)) {
      const points = point(test.columns[column] ?? []);
      parts.push(...joined(points, { class: "dots", stroke: colour(i) }));
      points.forEach((p) => p && parts.push(shape(i, ...p, 0.8, { class: "hollow", fill: null, stroke: colour(i) })));
      if (test.columns[column]) tests.push(make("span", {}, key(i, { class: "hollow", fill: null, stroke: colour(i) }), make("b", {}, fmt(test.columns[column][at])), ` ${test.split}`));
    }
    point(values).forEach((p, l) => {
      self.rows.push({ run: run.name, epoch: epoch.epoch, layer: run.layers[l], number: l + 1, x: x[l], [column]: values[l] });
      if (!p) return;
      self.marks.push({ x: p[0], y: p[1], set: { layer: l } });
      parts.push(shape(i, ...p, l === at ? 1.7 : run.layers.length > 40 ? 0.5 : 0.85, l === at ? { stroke: "var(--ground)", "stroke-width": 1, class: "marked" } : {}));
    });
    numbers.push(legend(i, make("b", {}, fmt(values[at])), ` at ${short(run.layers[at])}`));
    says.push(`${run.name} goes from ${fmt(values[0])} to ${fmt(last(values))}`);
    told.push(`${run.name} ${fmt(values[at])} at ${run.layers[at]}`);
  }
  return {
    parts, numbers: [...numbers, ...tests], value: state.layer + 1, max: depth, told: `layer ${state.layer + 1}: ${told.join("; ")}`,
    says: `${title(column)[0]} over the layers at epoch ${epochs[state.at]}, ${state.log ? "on a logarithmic scale" : "on a linear scale"}: ${says.join("; ") || "not measured"}.`,
  };
}

function overEpochs(self, column) {
  const top = EDGE.top, bottom = self.height - EDGE.bottom, wide = self.width - EDGE.left - EDGE.right, most = last(epochs);
  const bent = most > 20 ? Math.log1p : (v) => v, px = (e) => EDGE.left + (bent(e - epochs[0]) / bent(most - epochs[0] || 1)) * wide;
  const values = (run, l) => run.epochs.map((e) => e.columns[column]?.[l] ?? null), some = shown();
  const detail = some.includes(state.run) ? runs[state.run] : null;
  const all = some.flatMap((i) => (i === state.run ? runs[i].layers.flatMap((_, l) => values(runs[i], l)) : values(runs[i], layerOf(runs[i]))));
  const { y, ticks } = scale(all, column, top, bottom);
  const parts = frame(self, epochs.map((e) => [px(e), String(e)]).reverse(), ticks), numbers = [], says = [], told = [];
  const points = (run, l) => values(run, l).map((v, e) => (known(v) ? [px(run.epochs[e].epoch), y(v)] : null));
  const L = detail?.layers.length;
  detail?.layers.forEach((_, l) => parts.push(...joined(points(detail, l), { class: "thin", stroke: colour(state.run), "stroke-opacity": (0.2 + (0.55 * l) / Math.max(1, L - 1)).toFixed(2) })));
  parts.push(make("line", { class: "cursor", x1: px(epochs[state.at]), x2: px(epochs[state.at]), y1: top, y2: bottom }));
  epochs.forEach((e, at) => self.marks.push({ x: px(e), set: { at } }));
  for (const i of some) {
    const run = runs[i], l = layerOf(run), own = values(run, l), current = now(run).columns[column]?.[l];
    parts.push(...joined(points(run, l), { class: "line", stroke: colour(i) }));
    points(run, l).forEach((p, e) => p && parts.push(shape(i, ...p, run.epochs[e] === now(run) ? 1.7 : 0.7, run.epochs[e] === now(run) ? { stroke: "var(--ground)", "stroke-width": 1 } : {})));
    for (const e of run.epochs) run.layers.forEach((layer, n) => self.rows.push({ run: run.name, epoch: e.epoch, layer, number: n + 1, [column]: e.columns[column]?.[n] ?? null }));
    numbers.push(legend(i, make("b", {}, fmt(current)), ` at epoch ${now(run).epoch}`));
    says.push(`${run.name} at ${run.layers[l]} goes from ${fmt(own.find(known))} to ${fmt(last(own))}`);
    told.push(`${run.name} ${fmt(current)}`);
  }
  return {
    parts, numbers, value: state.at + 1, max: epochs.length, told: `epoch ${epochs[state.at]}: ${told.join("; ")}`,
    says: `${title(column)[0]} over the epochs, a line a layer: ${says.join("; ") || "not measured"}.`,
  };
}

// Matrices and maps, of one run, at the marked layer, at the epoch they were kept last.
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const int16 = (text) => new Int16Array(bytes(text).buffer), int8 = (text) => new Int8Array(bytes(text).buffer);
const unrolled = (list) => list.flatMap((v) => (v < 0 ? Array(-v).fill(0) : [v]));
function heat(self, rows, columns, value, fill) {
  const [R, C] = [rows.length, columns.length], edge = R <= 30 ? 26 : 8, side = Math.min(self.width, 380) - edge - 2, cell = side / Math.max(R, C);
  const parts = [];
  if (Math.max(R, C) <= 40) {
    for (let r = 0; r < R; r++) for (let c = 0; c < C; c++) {
      const v = fill(value(r, c), r);
      if (v) parts.push(make("rect", { class: v > 0 ? "pos" : "neg", "fill-opacity": Math.abs(v).toFixed(3), x: (edge + c * cell + 0.5).toFixed(1), y: (r * cell + 0.5).toFixed(1), width: (cell - 1).toFixed(1), height: (cell - 1).toFixed(1) }));
    }
  } else parts.push(make("image", { x: edge, y: 0, width: C * cell, height: R * cell, href: picture(R, C, (r, c) => fill(value(r, c), r)) }));
  parts.push(make("rect", { class: "frame", x: edge, y: 0.5, width: C * cell, height: R * cell }));
  const every = Math.ceil(14 / cell), long = [...rows, ...columns].some((n) => n.length > 3);
  const label = (names, k) => (long ? String(k) : names[k]);
  if (R <= 30) for (let k = 0; k < R; k += every) parts.push(make("text", { class: "end", x: edge - 5, y: (k + 0.5) * cell + 4 }, label(rows, k)));
  if (C <= 30) for (let k = 0; k < C; k += every) parts.push(make("text", { class: "mid", x: edge + (k + 0.5) * cell, y: R * cell + 14 }, label(columns, k)));
  self.rows = rows.flatMap((a, r) => columns.map((b, c) => ({ row: a, column: b, value: value(r, c) })));
  return { parts, height: Math.ceil(R * cell) + 20 };
}
function picture(R, C, fill) {
  const canvas = make("canvas", { width: C, height: R }), brush = canvas.getContext("2d"), image = brush.createImageData(C, R);
  for (let k = 0; k < R * C; k++) {
    const v = fill(Math.floor(k / C), k % C);
    image.data.set([...(v > 0 ? [31, 111, 181] : [194, 87, 26]), Math.round(Math.abs(v || 0) * 255)], 4 * k);
  }
  brush.putImageData(image, 0, 0);
  return canvas.toDataURL();
}
const matrices = () => upTo(runs[state.run].matrices, epochs[state.at]);
const nothing = (why) => ({ parts: [], height: 40, says: why, numbers: [make("span", {}, why)] });
function cosines(self) {
  const run = runs[state.run], code = matrices()?.gram[layerOf(run)], K = run.classes.length;
  if (!code) return nothing("No cosines of class means were kept here.");
  const fine = bytes(code).length === K * (K - 1), above = fine ? int16(code) : int8(code), one = fine ? 32767 : 127;
  const at = (r, c) => above[r * K - (r * (r + 1)) / 2 + c - r - 1];
  const value = (r, c) => { if (r === c) return 1; const v = r < c ? at(r, c) : at(c, r); return v < -one ? null : v / one; };
  let best = null;
  for (let r = 0; r < K; r++) for (let c = r + 1; c < K; c++) if (known(value(r, c)) && (!best || value(r, c) > best[0])) best = [value(r, c), r, c];
  const says = best ? `Closest two means: ${run.classes[best[1]]} and ${run.classes[best[2]]}, cosine ${fmt(best[0], 2)}. A simplex ETF has ${fmt(-1 / (K - 1), 3)} everywhere.` : "The cosines are undefined.";
  return { ...heat(self, run.classes, run.classes, value, (v) => v), says, numbers: [make("span", {}, says)] };
}
function confusion(self) {
  const run = runs[state.run], code = matrices()?.confusion[layerOf(run)], K = run.classes.length;
  if (!code) return nothing("No confusion of nearest means was kept here.");
  const counts = unrolled(code), C = counts.length / K, sums = run.classes.map((_, r) => counts.slice(r * C, (r + 1) * C).reduce((a, b) => a + b, 0));
  const columns = C === K ? run.classes : Array.from({ length: C }, (_, c) => String(c)), value = (r, c) => counts[r * C + c];
  let best = [0];
  for (let r = 0; r < K; r++) for (let c = 0; c < C; c++) if (columns[c] !== run.classes[r] && value(r, c) / sums[r] > best[0]) best = [value(r, c) / sums[r], r, c];
  const says = best[0] ? `Most often astray: of class ${run.classes[best[1]]}, ${fmt(100 * best[0], 2)} % are nearest to the mean of ${columns[best[2]]}. Shades go by the square root.` : "Every sample is nearest to its own class mean.";
  const numbers = [make("span", {}, says)];
  return { ...heat(self, run.classes, columns, value, (v, r) => Math.sqrt(v / sums[r])), says, numbers };
}
const REACH = 1.5; // what the largest number of a map stands for, as in planes.py
function map(self) {
  const run = runs[state.run], kept = upTo(run.planes, epochs[state.at]), here = kept?.layers[layerOf(run)];
  if (!here) return nothing("No map was kept here.");
  const side = Math.min(self.width, 380), middle = side / 2, parts = [], means = (layer) => int16(layer.means);
  const own = means(here), K = own.length / 2, dots = int8(here.points);
  const names = K === run.classes.length ? run.classes : Array.from({ length: K }, (_, k) => String(k));
  const reach = Math.max(...[...own].map((v) => Math.abs(v) / 32767), ...[...dots].map((v) => Math.abs(v) / 127));
  const at = (v, most) => middle + (v / most / reach) * (middle - 12), hue = (k) => `--h:${Math.round((k * 360) / K + 20)}`;
  self.rows = [];
  parts.push(make("rect", { class: "frame", x: 0.5, y: 0.5, width: side - 1, height: side - 1 }));
  for (let j = 0; j < dots.length / 2; j++) {
    const k = kept.labels[j], [x, y] = [dots[2 * j], dots[2 * j + 1]];
    parts.push(make("circle", { class: "class", style: hue(k), r: 2.2, "fill-opacity": 0.5, cx: at(x, 127).toFixed(1), cy: at(-y, 127).toFixed(1) }));
    self.rows.push({ what: "sample", class: names[k] ?? k, x: fmt((x / 127) * REACH), y: fmt((y / 127) * REACH) });
  }
  const before = kept.layers.slice(0, layerOf(run) + 1).filter((l) => l && means(l).length === own.length).map(means);
  for (let k = 0; k < K; k++) {
    if (K <= MANY) parts.push(...joined(before.map((m) => [at(m[2 * k], 32767), at(-m[2 * k + 1], 32767)]), { class: "trail", style: hue(k) }));
    self.rows.push({ what: "mean", class: names[k], x: fmt((own[2 * k] / 32767) * REACH), y: fmt((own[2 * k + 1] / 32767) * REACH) });
  }
  const spots = Array.from({ length: K }, (_, k) => [at(own[2 * k], 32767), at(-own[2 * k + 1], 32767)]);
  const labels = K <= MANY ? spread(spots, 18, 9, side - 9) : [];
  spots.forEach(([cx, cy], k) => parts.push(make("circle", { class: "class mean", style: hue(k), r: 4, cx, cy })));
  labels.forEach(([cx, cy], k) => {
    parts.push(make("line", { class: "trail", style: hue(k), x1: spots[k][0], y1: spots[k][1], x2: cx, y2: cy }));
    parts.push(make("circle", { class: "class", style: hue(k), r: 8.5, cx, cy }));
    parts.push(make("text", { class: "name", x: cx, y: cy }, names[k].length <= 2 ? names[k] : String(k)));
  });
  const part = known(here.share) ? `The two directions show ${fmt(100 * here.share, 3)} % of the means' spread. ` : "";
  const trails = K <= MANY && before.length > 1 ? "Lines: where the means come from, layer by layer, each in its own scale." : "";
  const says = part + trails;
  return { parts, height: side, says: `Class means and ${dots.length / 2} samples in the plane of the means' two leading directions. ${says}`, numbers: [make("span", {}, says)] };
}

// Places near some spots, none nearer to another than `room`, all inside a frame.
function spread(spots, room, least, most) {
  const places = spots.map(([x, y], k) => [x + Math.cos(k) * 0.1, y + Math.sin(k) * 0.1]);
  for (let turn = 0; turn < 200; turn++) {
    let still = true;
    for (const [i, a] of places.entries()) for (const b of places.slice(i + 1)) {
      const [dx, dy] = [a[0] - b[0], a[1] - b[1]], d = Math.hypot(dx, dy) || 1, push = (room - d) / 2;
      if (push <= 0.01) continue;
      still = false;
      a[0] += (dx / d) * push; a[1] += (dy / d) * push; b[0] -= (dx / d) * push; b[1] -= (dy / d) * push;
    }
    for (const p of places) for (const k of [0, 1]) p[k] = Math.min(most, Math.max(least, p[k]));
    if (still) break;
  }
  return places;
}

// Tables: every column at every layer, of the run in detail; a row marks its layer.
function table(run, values, caption, at) {
  const columns = names.filter((n) => values[n]);
  const head = ["layer", ...columns.map((n) => n)].map((n) => make("th", { scope: "col" }, n));
  const rows = run.layers.map((layer, l) => {
    const row = make("tr", l === at ? { "aria-current": "true" } : {}, make("th", { scope: "row", class: layer.length > 24 ? "long" : "" }, layer), ...columns.map((n) => make("td", {}, fmt(values[n][l]))));
    row.addEventListener("pointermove", (e) => (e.movementX || e.movementY) && set({ layer: l })); // not where the page moves
    row.addEventListener("click", () => set({ layer: l }));
    return row;
  });
  return make("div", { class: "wide", tabindex: 0, role: "region", "aria-label": caption }, make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)));
}
let drawn = "";
function tables() {
  const run = runs[state.run], epoch = now(run), mark = [state.run, epoch.epoch, state.test].join();
  if (mark !== drawn) {
    const of = epochs.length > 1 ? `${run.name}, epoch ${epoch.epoch}` : run.name;
    $("tables").replaceChildren(table(run, epoch.columns, of, layerOf(run)), ...testsOf(run).map((t) =>
      table(run, t.columns, `${run.name}, ${t.split}: ${t.samples} samples, about the class means of ${t.means ?? "the training data"}`, layerOf(run))));
    drawn = mark;
  }
  for (const body of $("tables").querySelectorAll("tbody")) [...body.rows].forEach((row, l) => (l === layerOf(run) ? row.setAttribute("aria-current", "true") : row.removeAttribute("aria-current")));
}

// Saving: what is seen, as a file of its own.
const cell = (v) => (v === null || v === undefined ? "" : /[",\n\r]/.test(String(v)) ? `"${String(v).replaceAll('"', '""')}"` : String(v));
const csv = (rows, heads = [...new Set(rows.flatMap(Object.keys))]) => [heads, ...rows.map((r) => heads.map((h) => r[h]))].map((r) => r.map(cell).join(",")).join("\r\n") + "\r\n";
function download(blob, name) {
  const a = make("a", { href: URL.createObjectURL(blob), download: name.replace(/[^\w.-]+/g, "_") });
  document.body.append(a); a.click(); a.remove();
  setTimeout(() => URL.revokeObjectURL(a.href), 10_000);
}
function standing(self) {
  const svg = self.plot.firstChild.cloneNode(true), [, , w, h] = svg.getAttribute("viewBox").split(" ");
  for (const [n, v] of Object.entries({ xmlns: "http://www.w3.org/2000/svg", width: w, height: h, role: "img" })) svg.setAttribute(n, v);
  svg.removeAttribute("aria-hidden");
  svg.prepend(make("title", {}, self.plot.getAttribute("aria-label")), make("style", {}, document.querySelector("style").textContent), make("rect", { width: w, height: h, fill: "var(--ground)" }));
  return { text: new XMLSerializer().serializeToString(svg).replace("<style xmlns=\"http://www.w3.org/1999/xhtml\">", "<style>"), w: Number(w), h: Number(h) };
}
const save = {
  CSV: (self, name) => download(new Blob([csv(self.rows)], { type: "text/csv" }), `${name}.csv`),
  SVG: (self, name) => download(new Blob([standing(self).text], { type: "image/svg+xml" }), `${name}.svg`),
  PNG: (self, name) => {
    const { text, w, h } = standing(self), image = new Image(), canvas = make("canvas", { width: 3 * w, height: 3 * h });
    image.onload = () => { canvas.getContext("2d").drawImage(image, 0, 0, 3 * w, 3 * h); canvas.toBlob((blob) => download(blob, `${name}.png`)); };
    image.src = `data:image/svg+xml,${encodeURIComponent(text)}`;
  },
};
function everything() {
  const row = (run, data, epoch, values) => run.layers.map((layer, l) => ({ run: run.name, data, epoch, layer, number: l + 1, ...Object.fromEntries(names.map((n) => [n, values[n]?.[l]])) }));
  return runs.flatMap((run) => [...run.epochs.flatMap((e) => row(run, run.about.data ?? "", e.epoch, e.columns)), ...run.tests.flatMap((t) => row(run, t.split, last(run.epochs).epoch, t.columns))]);
}
async function copy() {
  const text = [...$("tables").querySelectorAll("tr")].map((r) => [...r.cells].map((c) => c.textContent).join("\t")).join("\n");
  try { await navigator.clipboard.writeText(text); $("done").textContent = "Copied."; }
  catch { $("done").textContent = "This browser does not let the page copy; take the CSV."; }
}

// One state for all: whatever changes it, everything is drawn once in the next frame.
let waiting = false;
function set(change) {
  Object.assign(state, change);
  state.layer = Math.max(0, Math.min(depth - 1, state.layer));
  state.at = Math.max(0, Math.min(epochs.length - 1, state.at));
  if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; draw(); }); }
}
function draw() {
  const run = runs[state.run], epoch = epochs[state.at], kept = matrices()?.epoch, flat = upTo(run.planes, epoch)?.epoch;
  for (const [id, value] of [["epoch", state.at], ["layer", state.layer + 1]]) $(id).value = value;
  $("epoch-told").textContent = epoch; $("layer-told").textContent = short(run.layers[layerOf(run)]);
  $("epoch").setAttribute("aria-valuetext", `epoch ${epoch}`); $("layer").setAttribute("aria-valuetext", `layer ${layerOf(run) + 1}, ${run.layers[layerOf(run)]}`);
  const without = state.x === "path" ? shown().filter((i) => unplaced(runs[i])).map((i) => runs[i].name) : [];
  const older = shown().filter((i) => now(runs[i]).epoch !== epoch).map((i) => `${runs[i].name} at epoch ${now(runs[i]).epoch}`);
  const dashed = runs.some((r) => r.segments.length) ? "Dashed: what the straight line from the first to the last features predicts. " : "";
  const hollow = shown().some((i) => testsOf(runs[i]).length) ? "Hollow: test data, about the means of the training data. " : "";
  const wide = state.x === "path" ? "Across: depth, where layers of one shape stand at their place on the path. " : "Across: the number of the layer. ";
  $("curves-note").textContent = wide + dashed + hollow + (older.length ? `Not measured at epoch ${epoch}: shown is ${older.join(", ")}. ` : "")
    + (without.length ? `Nothing moves yet at this epoch between layers of one shape, so they have no place on the path and stand by their number: ${without.join(", ")}.` : "");
  const at = [[kept, "matrices"], [flat, "map"]].filter(([e]) => e !== undefined && epochs.length > 1).map(([e, what]) => `${what} of epoch ${e}`);
  $("geometry-note").textContent = `${run.name} at ${run.layers[layerOf(run)]}${at.length ? `; ${at.join(", ")}` : ""}.${run.classes.some((n) => n.length > 3) ? ` Classes: ${run.classes.slice(0, 40).map((n, k) => `${k} ${n}`).join(", ")}${run.classes.length > 40 ? ` and ${run.classes.length - 40} more` : ""}.` : ""}`;
  $("state").textContent = `${epochs.length > 1 ? `Epoch ${epoch}. ` : ""}Marked is ${run.layers[layerOf(run)]}, layer ${layerOf(run) + 1}.`;
  for (const each of charts) if (!each.figure.hidden) each.draw();
  tables();
}
function option(select, value, text) { select.append(make("option", { value }, text)); }
function start() {
  runs.forEach((run, i) => {
    const box = make("input", { type: "checkbox" });
    box.checked = true;
    box.addEventListener("change", () => { box.checked ? state.on.add(i) : state.on.delete(i); set({}); });
    $("runs").append(make("label", {}, box, key(i), short(run.name, 40)));
    option($("detail"), i, short(run.name, 40));
  });
  for (const place of document.querySelectorAll("[data-run]")) place.append(key(Number(place.dataset.run)).firstChild);
  others.forEach((n) => option($("column"), n, n));
  $("epoch").max = epochs.length - 1; $("layer").max = depth; $("column").value = state.column ?? "";
  $("at-epoch").hidden = epochs.length < 2; $("detail").parentNode.hidden = $("runs").hidden = runs.length < 2;
  $("with-test").hidden = !runs.some((r) => r.tests.length); $("column").parentNode.hidden = !others.length;
  const decided = runs[0].epochs.at(-1).columns.pfc3?.findIndex((v) => v >= 0.99) ?? -1;
  state.layer = decided < 0 ? runs[0].layers.length - 1 : decided;
  $("epoch").addEventListener("input", (e) => set({ at: Number(e.target.value) }));
  $("layer").addEventListener("input", (e) => set({ layer: Number(e.target.value) - 1 }));
  $("x").addEventListener("change", (e) => set({ x: e.target.value }));
  $("log").addEventListener("change", (e) => set({ log: e.target.value === "log" }));
  $("column").addEventListener("change", (e) => set({ column: e.target.value }));
  $("detail").addEventListener("change", (e) => set({ run: Number(e.target.value) }));
  $("test").addEventListener("change", (e) => set({ test: e.target.checked }));
  $("controls").addEventListener("submit", (e) => e.preventDefault());
  $("copy").addEventListener("click", copy);
  $("csv").addEventListener("click", () => download(new Blob([csv(everything())], { type: "text/csv" }), "pfc.csv"));
  const picked = [...names.filter((n) => !others.includes(n)).map((n) => () => n), ...(others.length ? [() => state.column] : [])];
  for (const column of picked) {
    const two = epochs.length > 1, called = (where) => () => [title(column())[0], [title(column())[1], where].filter(Boolean).join(", ")];
    chart($("curves"), { caption: called(two ? "over layers" : ""), file: () => `${column()}-layers`, height: 220, slider: "layer", draw: (self) => overLayers(self, column()) });
    if (two) chart($("curves"), { caption: called("over epochs"), file: () => `${column()}-epochs`, height: 220, slider: "epoch", draw: (self) => overEpochs(self, column()) });
  }
  if (runs.some((r) => r.matrices.length)) {
    chart($("planes"), { caption: () => ["Cosines", "of class means"], file: () => "cosines", height: 300, draw: cosines });
    chart($("planes"), { caption: () => ["Nearest means", "rows: class"], file: () => "confusion", height: 300, draw: confusion });
  }
  if (runs.some((r) => r.planes.length)) chart($("planes"), { caption: () => ["Map", "of means and samples"], file: () => "map", height: 300, draw: map });
  $("geometry").hidden = !$("planes").children.length;
  addEventListener("resize", () => set({}));
  draw();
}
start();
})();
