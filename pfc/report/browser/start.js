// One state for all: whatever changes it, everything is drawn once in the next frame.
let waiting = false;
function set(change) {
  Object.assign(state, change);
  state.layer = Math.max(0, Math.min(depth - 1, state.layer));
  state.at = Math.max(0, Math.min(epochs.length - 1, state.at));
  if (!waiting) {
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  }
}
function draw() {
  for (const each of charts) each.fit(); // all before the first change: a width asked for later would lay out anew
  const run = runs[state.run],
    epoch = epochs[state.at],
    kept = matrices()?.epoch,
    flat = upTo(run.planes, epoch)?.epoch;
  for (const [id, value] of [
    ["epoch", state.at],
    ["layer", state.layer + 1],
  ])
    $(id).value = value;
  $("epoch-told").textContent = epoch;
  $("layer-told").textContent = short(run.layers[layerOf(run)]);
  $("epoch").setAttribute("aria-valuetext", `epoch ${epoch}`);
  $("layer").setAttribute("aria-valuetext", `layer ${layerOf(run) + 1}, ${run.layers[layerOf(run)]}`);
  const without =
    state.x === "path"
      ? shown()
          .filter((i) => unplaced(runs[i]))
          .map((i) => runs[i].name)
      : [];
  const older = shown()
    .filter((i) => now(runs[i]).epoch !== epoch)
    .map((i) => `${runs[i].name} at epoch ${now(runs[i]).epoch}`);
  const dashed = runs.some((r) => r.segments.length)
    ? "Dashed: what the straight line from the first to the last features predicts. "
    : "";
  const hollow = shown().some((i) => testsOf(runs[i]).length)
    ? "Hollow: test data, about the means of the training data. "
    : "";
  const wide =
    state.x === "path"
      ? "Across: depth, where layers of one shape stand at their place on the path. "
      : "Across: the number of the layer. ";
  $("curves-note").textContent =
    wide +
    dashed +
    hollow +
    (older.length ? `Not measured at epoch ${epoch}: shown is ${older.join(", ")}. ` : "") +
    (without.length
      ? `Nothing moves yet at this epoch between layers of one shape, so they have no place on the path and stand by their number: ${without.join(", ")}.`
      : "");
  const at = [
    [kept, "matrices"],
    [flat, "map"],
  ]
    .filter(([e]) => e !== undefined && epochs.length > 1)
    .map(([e, what]) => `${what} of epoch ${e}`);
  $("geometry-note").textContent =
    `${run.name} at ${run.layers[layerOf(run)]}${at.length ? `; ${at.join(", ")}` : ""}.${
      run.classes.some((n) => n.length > 3)
        ? ` Classes: ${run.classes
            .slice(0, 40)
            .map((n, k) => `${k} ${n}`)
            .join(", ")}${run.classes.length > 40 ? ` and ${run.classes.length - 40} more` : ""}.`
        : ""
    }`;
  $("state").textContent =
    `${epochs.length > 1 ? `Epoch ${epoch}. ` : ""}Marked is ${run.layers[layerOf(run)]}, layer ${layerOf(run) + 1}.`;
  for (const each of charts) each.draw();
  tables();
}
function option(select, value, text) {
  select.append(make("option", { value }, text));
}
function start() {
  runs.forEach((run, i) => {
    const box = make("input", { type: "checkbox" });
    box.checked = true;
    box.addEventListener("change", () => {
      box.checked ? state.on.add(i) : state.on.delete(i);
      set({});
    });
    $("runs").append(make("label", {}, box, key(i), short(run.name, 40)));
    option($("detail"), i, short(run.name, 40));
  });
  for (const place of document.querySelectorAll("[data-run]")) place.append(key(Number(place.dataset.run)).firstChild);
  others.forEach((n) => option($("column"), n, n));
  $("epoch").max = epochs.length - 1;
  $("layer").max = depth;
  $("column").value = state.column ?? "";
  $("at-epoch").hidden = epochs.length < 2;
  $("detail").parentNode.hidden = $("runs").hidden = runs.length < 2;
  $("with-test").hidden = !runs.some((r) => r.tests.length);
  $("column").parentNode.hidden = !others.length;
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
  const picked = [
    ...names.filter((n) => !others.includes(n)).map((n) => () => n),
    ...(others.length ? [() => state.column] : []),
  ];
  for (const column of picked) {
    const two = epochs.length > 1,
      called = (where) => () => [title(column())[0], [title(column())[1], where].filter(Boolean).join(", ")];
    chart($("curves"), {
      caption: called(two ? "over layers" : ""),
      file: () => `${column()}-layers`,
      height: 220,
      slider: "layer",
      draw: (self) => overLayers(self, column()),
    });
    if (two)
      chart($("curves"), {
        caption: called("over epochs"),
        file: () => `${column()}-epochs`,
        height: 220,
        slider: "epoch",
        draw: (self) => overEpochs(self, column()),
      });
  }
  if (runs.some((r) => r.matrices.length)) {
    chart($("planes"), {
      caption: () => ["Cosines", "of class means"],
      file: () => "cosines",
      height: 300,
      draw: cosines,
    });
    chart($("planes"), {
      caption: () => ["Nearest means", "rows: class"],
      file: () => "confusion",
      height: 300,
      draw: confusion,
    });
  }
  if (runs.some((r) => r.planes.length))
    chart($("planes"), { caption: () => ["Map", "of means and samples"], file: () => "map", height: 300, draw: map });
  $("geometry").hidden = !$("planes").children.length;
  addEventListener("resize", () => set({}));
  draw();
}
start();
