// Tables: every column at every layer, of the run in detail; a row marks its layer.
function table(run, values, caption, at) {
  const columns = names.filter((n) => values[n]);
  const head = ["layer", ...columns.map((n) => n)].map((n) => make("th", { scope: "col" }, n));
  const rows = run.layers.map((layer, l) => {
    const row = make(
      "tr",
      l === at ? { "aria-current": "true" } : {},
      make("th", { scope: "row", class: layer.length > 24 ? "long" : "" }, layer),
      ...columns.map((n) => make("td", {}, fmt(values[n][l]))),
    );
    row.addEventListener("pointermove", (e) => (e.movementX || e.movementY) && set({ layer: l })); // not where the page moves
    row.addEventListener("click", () => set({ layer: l }));
    return row;
  });
  return make(
    "div",
    { class: "wide", tabindex: 0, role: "region", "aria-label": caption },
    make(
      "table",
      {},
      make("caption", {}, make("span", {}, caption)),
      make("thead", {}, make("tr", {}, ...head)),
      make("tbody", {}, ...rows),
    ),
  );
}
let drawn = "";
function tables() {
  const run = runs[state.run],
    epoch = now(run),
    mark = [state.run, epoch.epoch, state.test].join();
  if (mark !== drawn) {
    const of = epochs.length > 1 ? `${run.name}, epoch ${epoch.epoch}` : run.name;
    $("tables").replaceChildren(
      table(run, epoch.columns, of, layerOf(run)),
      ...testsOf(run).map((t) =>
        table(
          run,
          t.columns,
          `${run.name}, ${t.split}: ${t.samples} samples, about the class means of ${t.means ?? "the training data"}`,
          layerOf(run),
        ),
      ),
    );
    drawn = mark;
  }
  for (const body of $("tables").querySelectorAll("tbody"))
    [...body.rows].forEach((row, l) =>
      l === layerOf(run) ? row.setAttribute("aria-current", "true") : row.removeAttribute("aria-current"),
    );
}

// Saving: what is seen, as a file of its own.
const cell = (v) =>
  v === null || v === undefined ? "" : /[",\n\r]/.test(String(v)) ? `"${String(v).replaceAll('"', '""')}"` : String(v);
const csv = (rows, heads = [...new Set(rows.flatMap(Object.keys))]) =>
  [heads, ...rows.map((r) => heads.map((h) => r[h]))].map((r) => r.map(cell).join(",")).join("\r\n") + "\r\n";
function download(blob, name) {
  const a = make("a", { href: URL.createObjectURL(blob), download: name.replace(/[^\w.-]+/g, "_") });
  document.body.append(a);
  a.click();
  a.remove();
  setTimeout(() => URL.revokeObjectURL(a.href), 10_000);
}
function standing(self) {
  const svg = self.plot.firstChild.cloneNode(true),
    [, , w, h] = svg.getAttribute("viewBox").split(" ");
  for (const [n, v] of Object.entries({ xmlns: "http://www.w3.org/2000/svg", width: w, height: h, role: "img" }))
    svg.setAttribute(n, v);
  svg.removeAttribute("aria-hidden");
  svg.prepend(
    make("title", {}, self.plot.getAttribute("aria-label")),
    make("style", {}, document.querySelector("style").textContent),
    make("rect", { width: w, height: h, fill: "var(--ground)" }),
  );
  return {
    text: new XMLSerializer().serializeToString(svg).replace('<style xmlns="http://www.w3.org/1999/xhtml">', "<style>"),
    w: Number(w),
    h: Number(h),
  };
}
const save = {
  CSV: (self, name) => download(new Blob([csv(self.rows)], { type: "text/csv" }), `${name}.csv`),
  SVG: (self, name) => download(new Blob([standing(self).text], { type: "image/svg+xml" }), `${name}.svg`),
  PNG: (self, name) => {
    const { text, w, h } = standing(self),
      image = new Image(),
      canvas = make("canvas", { width: 3 * w, height: 3 * h });
    image.onload = () => {
      canvas.getContext("2d").drawImage(image, 0, 0, 3 * w, 3 * h);
      canvas.toBlob((blob) => download(blob, `${name}.png`));
    };
    image.src = `data:image/svg+xml,${encodeURIComponent(text)}`;
  },
};
function everything() {
  const row = (run, data, epoch, values) =>
    run.layers.map((layer, l) => ({
      run: run.name,
      data,
      epoch,
      layer,
      number: l + 1,
      ...Object.fromEntries(names.map((n) => [n, values[n]?.[l]])),
    }));
  return runs.flatMap((run) => [
    ...run.epochs.flatMap((e) => row(run, run.about.data ?? "", e.epoch, e.columns)),
    ...run.tests.flatMap((t) => row(run, t.split, last(run.epochs).epoch, t.columns)),
  ]);
}
async function copy() {
  const text = [...$("tables").querySelectorAll("tr")]
    .map((r) => [...r.cells].map((c) => c.textContent).join("\t"))
    .join("\n");
  try {
    await navigator.clipboard.writeText(text);
    $("done").textContent = "Copied.";
  } catch {
    $("done").textContent = "This browser does not let the page copy; take the CSV.";
  }
}
