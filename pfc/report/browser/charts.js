// A chart: caption with its downloads, a plot that keys and pointer move through, and a line of numbers.
const charts = [];
function chart(place, { caption, file, height, slider, draw }) {
  const plot = make("div", { class: "plot" }),
    read = make("p", { class: "read" });
  const words = make("b"),
    more = make("span"),
    tools = make("span", { class: "tools" });
  const figure = make("figure", {}, make("figcaption", {}, words, more, tools), plot, read);
  const self = { figure, plot, read, rows: [], marks: [], height };
  if (slider) {
    for (const [n, v] of Object.entries({
      role: "slider",
      tabindex: 0,
      "aria-valuemin": 1,
      "aria-orientation": "horizontal",
    }))
      plot.setAttribute(n, v);
    plot.addEventListener("keydown", (event) => move(event, slider));
    plot.addEventListener("pointermove", (event) => self.point(event));
    plot.addEventListener("pointerdown", (event) => self.point(event));
  } else {
    plot.setAttribute("role", "img");
    plot.addEventListener("pointermove", (event) => {
      const words = self.tell?.(...self.spot(event));
      if (words) read.replaceChildren(make("span", {}, words));
    });
    plot.addEventListener("pointerleave", () => self.draw());
  }
  self.spot = (event) => {
    const box = plot.getBoundingClientRect(),
      factor = self.width / box.width;
    return [(event.clientX - box.left) * factor, (event.clientY - box.top) * factor];
  };
  self.point = (event) => {
    const [x, y] = self.spot(event);
    const nearest = self.marks.reduce((best, m) => {
      const d = (m.x - x) ** 2 + ((m.y ?? y) - y) ** 2 / 16;
      return !best || d < best[0] ? [d, m] : best;
    }, null);
    if (nearest) set(nearest[1].set);
  };
  self.fit = () => (self.width = Math.round(Math.max(260, figure.clientWidth || 520)));
  self.draw = () => {
    self.rows = [];
    self.marks = [];
    self.tell = null;
    const [name, rest] = caption();
    words.textContent = name;
    more.textContent = rest;
    const { parts, height: own, says, value, max, told, numbers } = draw(self);
    const svg = make("svg", { viewBox: `0 0 ${self.width} ${own ?? height}`, "aria-hidden": "true" }, ...parts);
    plot.replaceChildren(svg);
    plot.setAttribute("aria-label", says);
    if (slider) {
      plot.setAttribute("aria-valuenow", value);
      plot.setAttribute("aria-valuemax", max);
      plot.setAttribute("aria-valuetext", told);
    }
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
  const right = self.width - EDGE.right,
    bottom = self.height - EDGE.bottom;
  const parts = y.flatMap(([at, label]) => [
    make("line", { class: "grid", x1: EDGE.left, x2: right, y1: at, y2: at }),
    make("text", { class: "end", x: EDGE.left - 7, y: at + 4 }, label),
  ]);
  for (const [x, label] of apart(ticks, 34))
    parts.push(
      make("text", { class: x > right - 14 ? "end" : "mid", x: x > right - 14 ? right + 4 : x, y: bottom + 17 }, label),
    );
  return parts;
}
const joined = (points, attributes) => {
  const parts = [];
  for (let run = [], i = 0; i <= points.length; i++) {
    if (i < points.length && points[i]) run.push(points[i]);
    else {
      if (run.length > 1)
        parts.push(
          make("polyline", { ...attributes, points: run.map((p) => p.map((v) => v.toFixed(1)).join(",")).join(" ") }),
        );
      run = [];
    }
  }
  return parts;
};

function overLayers(self, column) {
  const top = EDGE.top,
    bottom = self.height - EDGE.bottom,
    wide = self.width - EDGE.left - EDGE.right;
  const some = shown()
    .map((i) => ({ i, run: runs[i], epoch: now(runs[i]) }))
    .filter((s) => s.epoch.columns[column]);
  const lines = (s) => s.epoch.lines.map((l) => l[column] ?? []);
  const all = some.flatMap((s) => [
    ...s.epoch.columns[column],
    ...lines(s).flat(),
    ...testsOf(s.run).flatMap((t) => t.columns[column] ?? []),
  ]);
  const { y, ticks } = scale(all, column, top, bottom),
    px = (x) => EDGE.left + x * wide;
  const under =
    state.x === "path"
      ? [0, 0.25, 0.5, 0.75, 1].map((v) => [px(v), fmt(v)])
      : Array.from({ length: depth }, (_, l) => [px(depth > 1 ? l / (depth - 1) : 0), String(l + 1)]);
  const parts = frame(self, under, ticks),
    numbers = [],
    tests = [],
    says = [],
    told = [];
  for (const { i, run, epoch } of some) {
    const x = across(run, epoch),
      values = epoch.columns[column],
      at = layerOf(run);
    const point = (vs) => vs.map((v, l) => (known(v) ? [px(x[l]), y(v)] : null));
    run.segments.forEach((segment, k) => {
      const line = lines({ epoch })[k] ?? [];
      parts.push(
        ...joined(
          line.map((v, j) => (known(v) ? [px(lineAcross(run, epoch, segment, j / (line.length - 1))), y(v)] : null)),
          { class: "dashed", stroke: colour(i) },
        ),
      );
    });
    parts.push(...joined(point(values), { class: "line", stroke: colour(i) }));
    for (const test of testsOf(run)) {
      const points = point(test.columns[column] ?? []);
      parts.push(...joined(points, { class: "dots", stroke: colour(i) }));
      points.forEach((p) => p && parts.push(shape(i, ...p, 0.8, { class: "hollow", fill: null, stroke: colour(i) })));
      if (test.columns[column])
        tests.push(
          make(
            "span",
            {},
            key(i, { class: "hollow", fill: null, stroke: colour(i) }),
            make("b", {}, fmt(test.columns[column][at])),
            ` ${test.split}`,
          ),
        );
    }
    point(values).forEach((p, l) => {
      self.rows.push({
        run: run.name,
        epoch: epoch.epoch,
        layer: run.layers[l],
        number: l + 1,
        x: x[l],
        [column]: values[l],
      });
      if (!p) return;
      self.marks.push({ x: p[0], y: p[1], set: { layer: l } });
      parts.push(
        shape(
          i,
          ...p,
          l === at ? 1.7 : run.layers.length > 40 ? 0.5 : 0.85,
          l === at ? { stroke: "var(--ground)", "stroke-width": 1, class: "marked" } : {},
        ),
      );
    });
    numbers.push(legend(i, make("b", {}, fmt(values[at])), ` at ${short(run.layers[at])}`));
    says.push(`${run.name} goes from ${fmt(values[0])} to ${fmt(last(values))}`);
    told.push(`${run.name} ${fmt(values[at])} at ${run.layers[at]}`);
  }
  return {
    parts,
    numbers: [...numbers, ...tests],
    value: state.layer + 1,
    max: depth,
    told: `layer ${state.layer + 1}: ${told.join("; ")}`,
    says: `${title(column)[0]} over the layers at epoch ${epochs[state.at]}, ${state.log ? "on a logarithmic scale" : "on a linear scale"}: ${says.join("; ") || "not measured"}.`,
  };
}

function overEpochs(self, column) {
  const top = EDGE.top,
    bottom = self.height - EDGE.bottom,
    wide = self.width - EDGE.left - EDGE.right,
    most = last(epochs);
  const bent = most > 20 ? Math.log1p : (v) => v,
    px = (e) => EDGE.left + (bent(e - epochs[0]) / bent(most - epochs[0] || 1)) * wide;
  const values = (run, l) => run.epochs.map((e) => e.columns[column]?.[l] ?? null),
    some = shown();
  const detail = some.includes(state.run) ? runs[state.run] : null;
  const all = some.flatMap((i) =>
    i === state.run ? runs[i].layers.flatMap((_, l) => values(runs[i], l)) : values(runs[i], layerOf(runs[i])),
  );
  const { y, ticks } = scale(all, column, top, bottom);
  const parts = frame(self, epochs.map((e) => [px(e), String(e)]).reverse(), ticks),
    numbers = [],
    says = [],
    told = [];
  const points = (run, l) => values(run, l).map((v, e) => (known(v) ? [px(run.epochs[e].epoch), y(v)] : null));
  const L = detail?.layers.length;
  detail?.layers.forEach((_, l) =>
    parts.push(
      ...joined(points(detail, l), {
        class: "thin",
        stroke: colour(state.run),
        "stroke-opacity": (0.2 + (0.55 * l) / Math.max(1, L - 1)).toFixed(2),
      }),
    ),
  );
  parts.push(
    make("line", { class: "cursor", x1: px(epochs[state.at]), x2: px(epochs[state.at]), y1: top, y2: bottom }),
  );
  epochs.forEach((e, at) => self.marks.push({ x: px(e), set: { at } }));
  for (const i of some) {
    const run = runs[i],
      l = layerOf(run),
      own = values(run, l),
      current = now(run).columns[column]?.[l];
    parts.push(...joined(points(run, l), { class: "line", stroke: colour(i) }));
    points(run, l).forEach(
      (p, e) =>
        p &&
        parts.push(
          shape(
            i,
            ...p,
            run.epochs[e] === now(run) ? 1.7 : 0.7,
            run.epochs[e] === now(run) ? { stroke: "var(--ground)", "stroke-width": 1 } : {},
          ),
        ),
    );
    for (const e of run.epochs)
      run.layers.forEach((layer, n) =>
        self.rows.push({
          run: run.name,
          epoch: e.epoch,
          layer,
          number: n + 1,
          [column]: e.columns[column]?.[n] ?? null,
        }),
      );
    numbers.push(legend(i, make("b", {}, fmt(current)), ` at epoch ${now(run).epoch}`));
    says.push(`${run.name} at ${run.layers[l]} goes from ${fmt(own.find(known))} to ${fmt(last(own))}`);
    told.push(`${run.name} ${fmt(current)}`);
  }
  return {
    parts,
    numbers,
    value: state.at + 1,
    max: epochs.length,
    told: `epoch ${epochs[state.at]}: ${told.join("; ")}`,
    says: `${title(column)[0]} over the epochs, a line a layer: ${says.join("; ") || "not measured"}.`,
  };
}
