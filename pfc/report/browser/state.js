// The numbers of the page, and the one state that all views show.
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("pfc-data").textContent),
  runs = data.runs;
const last = (list) => list[list.length - 1],
  known = (v) => typeof v === "number";
const epochs = [...new Set(runs.flatMap((r) => r.epochs.map((e) => e.epoch)))].sort((a, b) => a - b);
const MANY = 20; // classes that are still named on a map
const depth = Math.max(...runs.map((r) => r.layers.length));
const names = Object.keys(data.columns);
const others = names.filter((n) => !["pfc1", "pfc2", "pfc3"].includes(n));
const state = {
  at: epochs.length - 1,
  layer: 0,
  run: 0,
  on: new Set(runs.keys()),
  x: "path",
  log: true,
  column: ["nc1", "cdnv", ...others].find((n) => others.includes(n)),
  test: true,
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
const SHAPES = [
  "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
  "M0-5 4.6 3.5H-4.6Z",
  "M-3.7-3.7h7.4v7.4h-7.4Z",
  "M0-5 5 0 0 5-5 0Z",
  "M0 5-4.6-3.5H4.6Z",
  "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3Z",
];
const shape = (i, x, y, size = 1, more = {}) =>
  make("path", {
    d: SHAPES[(i + Math.floor(i / 8)) % SHAPES.length],
    transform: `translate(${x.toFixed(1)} ${y.toFixed(1)}) scale(${size})`,
    fill: colour(i),
    ...more,
  });
const key = (i, more) =>
  make(
    "span",
    { class: "key" },
    make("svg", { viewBox: "-7 -7 14 14", "aria-hidden": "true" }, shape(i, 0, 0, 1.2, more)),
  );
const title = (n) => [
  /^(pfc|nc)\d/.test(n) ? n.replace(/^[a-z]+\d/, (t) => t.toUpperCase()).replaceAll("_", " ") : n,
  data.columns[n].title,
];

// What is shown: the epoch of each run that was measured last before the chosen one.
const upTo = (list, epoch) => list.findLast((e) => e.epoch <= epoch) ?? list[0];
const now = (run) => upTo(run.epochs, epochs[state.at]);
const shown = () => [...runs.keys()].filter((i) => state.on.has(i));
const layerOf = (run) => Math.min(state.layer, run.layers.length - 1);
const isLast = (run) => now(run) === last(run.epochs);
const testsOf = (run) => (state.test && isLast(run) ? run.tests : []);

// Where layers stand across: by number, or inside a run of one shape by their place on its path.
function placed(run, epoch) {
  const positions = epoch.columns.position ?? [],
    L = run.layers.length;
  const x = run.layers.map((_, l) => l);
  for (const [start, n] of run.segments) {
    const own = positions.slice(start, start + n);
    if (own.length === n && own.every(known))
      own.forEach((p, l) => {
        x[start + l] = start + p * (n - 1);
      });
  }
  return x.map((v) => (L > 1 ? v / (L - 1) : 0));
}
function across(run, epoch) {
  return state.x === "path" ? placed(run, epoch) : run.layers.map((_, l) => (depth > 1 ? l / (depth - 1) : 0));
}
const unplaced = (run) =>
  run.segments.some(([s, n]) => !(now(run).columns.position ?? []).slice(s, s + n).every(known));
// The straight line of a segment: t is a place on the path, so between layers it goes as their places do.
function lineAcross(run, epoch, [start, n], t) {
  const own = (epoch.columns.position ?? []).slice(start, start + n),
    x = across(run, epoch);
  if (!own.every(known)) return x[start] + t * (x[start + n - 1] - x[start]);
  let l = 0;
  while (l < n - 2 && own[l + 1] < t) l++;
  const part = own[l + 1] > own[l] ? Math.min(1, Math.max(0, (t - own[l]) / (own[l + 1] - own[l]))) : 0;
  return x[start + l] + part * (x[start + l + 1] - x[start + l]);
}
