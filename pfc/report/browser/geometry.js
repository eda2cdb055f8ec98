// Matrices and maps, of one run, at the marked layer, at the epoch they were kept last.
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const int16 = (text) => new Int16Array(bytes(text).buffer),
  int8 = (text) => new Int8Array(bytes(text).buffer);
const unrolled = (list) => list.flatMap((v) => (v < 0 ? Array(-v).fill(0) : [v]));
function heat(self, rows, columns, value, fill, words) {
  const [R, C] = [rows.length, columns.length],
    edge = R <= 30 ? 26 : 8,
    side = Math.min(self.width, 380) - edge - 2,
    cell = side / Math.max(R, C);
  const parts = [];
  if (Math.max(R, C) <= 40) {
    for (let r = 0; r < R; r++)
      for (let c = 0; c < C; c++) {
        const v = fill(value(r, c), r);
        if (v)
          parts.push(
            make("rect", {
              class: v > 0 ? "pos" : "neg",
              "fill-opacity": Math.abs(v).toFixed(3),
              x: (edge + c * cell + 0.5).toFixed(1),
              y: (r * cell + 0.5).toFixed(1),
              width: (cell - 1).toFixed(1),
              height: (cell - 1).toFixed(1),
            }),
          );
      }
  } else
    parts.push(
      make("image", {
        x: edge,
        y: 0,
        width: C * cell,
        height: R * cell,
        href: picture(R, C, (r, c) => fill(value(r, c), r)),
      }),
    );
  parts.push(make("rect", { class: "frame", x: edge, y: 0.5, width: C * cell, height: R * cell }));
  const every = Math.ceil(14 / cell),
    long = [...rows, ...columns].some((n) => n.length > 3);
  const label = (names, k) => (long ? String(k) : names[k]);
  if (R <= 30)
    for (let k = 0; k < R; k += every)
      parts.push(make("text", { class: "end", x: edge - 5, y: (k + 0.5) * cell + 4 }, label(rows, k)));
  if (C <= 30)
    for (let k = 0; k < C; k += every)
      parts.push(make("text", { class: "mid", x: edge + (k + 0.5) * cell, y: R * cell + 14 }, label(columns, k)));
  self.rows = rows.flatMap((a, r) => columns.map((b, c) => ({ row: a, column: b, value: value(r, c) })));
  self.tell = (x, y) => {
    const [r, c] = [Math.floor(y / cell), Math.floor((x - edge) / cell)];
    return r >= 0 && r < R && c >= 0 && c < C ? words(rows[r], columns[c], value(r, c), r) : null;
  };
  return { parts, height: Math.ceil(R * cell) + 20 };
}
function picture(R, C, fill) {
  const canvas = make("canvas", { width: C, height: R }),
    brush = canvas.getContext("2d"),
    image = brush.createImageData(C, R);
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
  const run = runs[state.run],
    code = matrices()?.gram[layerOf(run)],
    K = run.classes.length;
  if (!code) return nothing("No cosines of class means were kept here.");
  const fine = bytes(code).length === K * (K - 1),
    above = fine ? int16(code) : int8(code),
    one = fine ? 32767 : 127;
  const at = (r, c) => above[r * K - (r * (r + 1)) / 2 + c - r - 1];
  const value = (r, c) => {
    if (r === c) return 1;
    const v = r < c ? at(r, c) : at(c, r);
    return v < -one ? null : v / one;
  };
  let best = null;
  for (let r = 0; r < K; r++)
    for (let c = r + 1; c < K; c++)
      if (known(value(r, c)) && (!best || value(r, c) > best[0])) best = [value(r, c), r, c];
  const says = best
    ? `Closest two means: ${run.classes[best[1]]} and ${run.classes[best[2]]}, cosine ${fmt(best[0], 2)}. Orange is below 0; a simplex ETF has ${fmt(-1 / (K - 1), 3)} everywhere.`
    : "The cosines are undefined.";
  const words = (a, b, v) => `Means of ${a} and ${b}: cosine ${fmt(v, 3)}.`;
  const drawn = heat(self, run.classes, run.classes, value, (v) => v, words);
  return { ...drawn, says, numbers: [make("span", {}, says)] };
}
function confusion(self) {
  const run = runs[state.run],
    code = matrices()?.confusion[layerOf(run)],
    K = run.classes.length;
  if (!code) return nothing("No confusion of nearest means was kept here.");
  const counts = unrolled(code),
    C = counts.length / K,
    sums = run.classes.map((_, r) => counts.slice(r * C, (r + 1) * C).reduce((a, b) => a + b, 0));
  const columns = C === K ? run.classes : Array.from({ length: C }, (_, c) => String(c)),
    value = (r, c) => counts[r * C + c];
  let best = [0];
  for (let r = 0; r < K; r++)
    for (let c = 0; c < C; c++)
      if (columns[c] !== run.classes[r] && value(r, c) / sums[r] > best[0]) best = [value(r, c) / sums[r], r, c];
  const says = best[0]
    ? `Most often astray: of class ${run.classes[best[1]]}, ${fmt(100 * best[0], 2)} % are nearest to the mean of ${columns[best[2]]}. Shades go by the square root.`
    : "Every sample is nearest to its own class mean.";
  const words = (a, b, v, r) => `Of ${sums[r]} samples of class ${a}, ${v} are nearest to the mean of ${b}.`;
  const drawn = heat(self, run.classes, columns, value, (v, r) => Math.sqrt(v / sums[r]), words);
  return { ...drawn, says, numbers: [make("span", {}, says)] };
}
const REACH = 1.5; // what the largest number of a map stands for, as in planes.py
function map(self) {
  const run = runs[state.run],
    kept = upTo(run.planes, epochs[state.at]),
    here = kept?.layers[layerOf(run)];
  if (!here) return nothing("No map was kept here.");
  const side = Math.min(self.width, 380),
    middle = side / 2,
    parts = [],
    means = (layer) => int16(layer.means);
  const own = means(here),
    K = own.length / 2,
    dots = int8(here.points);
  const names = K === run.classes.length ? run.classes : Array.from({ length: K }, (_, k) => String(k));
  const reach = Math.max(...[...own].map((v) => Math.abs(v) / 32767), ...[...dots].map((v) => Math.abs(v) / 127));
  const at = (v, most) => middle + (v / most / reach) * (middle - 12),
    hue = (k) => `--h:${Math.round((k * 360) / K + 20)}`;
  self.rows = [];
  parts.push(make("rect", { class: "frame", x: 0.5, y: 0.5, width: side - 1, height: side - 1 }));
  for (let j = 0; j < dots.length / 2; j++) {
    const k = kept.labels[j],
      [x, y] = [dots[2 * j], dots[2 * j + 1]];
    parts.push(
      make("circle", {
        class: "class",
        style: hue(k),
        r: 2.2,
        "fill-opacity": 0.5,
        cx: at(x, 127).toFixed(1),
        cy: at(-y, 127).toFixed(1),
      }),
    );
    self.rows.push({ what: "sample", class: names[k] ?? k, x: fmt((x / 127) * REACH), y: fmt((y / 127) * REACH) });
  }
  const before = kept.layers
    .slice(0, layerOf(run) + 1)
    .filter((l) => l && means(l).length === own.length)
    .map(means);
  for (let k = 0; k < K; k++) {
    if (K <= MANY)
      parts.push(
        ...joined(
          before.map((m) => [at(m[2 * k], 32767), at(-m[2 * k + 1], 32767)]),
          { class: "trail", style: hue(k) },
        ),
      );
    self.rows.push({
      what: "mean",
      class: names[k],
      x: fmt((own[2 * k] / 32767) * REACH),
      y: fmt((own[2 * k + 1] / 32767) * REACH),
    });
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
  const trails =
    K <= MANY && before.length > 1 ? "Lines: where the means come from, layer by layer, each in its own scale." : "";
  const says = part + trails;
  return {
    parts,
    height: side,
    says: `Class means and ${dots.length / 2} samples in the plane of the means' two leading directions. ${says}`,
    numbers: [make("span", {}, says)],
  };
}

// Places near some spots, none nearer to another than `room`, all inside a frame.
function spread(spots, room, least, most) {
  const places = spots.map(([x, y], k) => [x + Math.cos(k) * 0.1, y + Math.sin(k) * 0.1]);
  for (let turn = 0; turn < 200; turn++) {
    let still = true;
    for (const [i, a] of places.entries())
      for (const b of places.slice(i + 1)) {
        const [dx, dy] = [a[0] - b[0], a[1] - b[1]],
          d = Math.hypot(dx, dy) || 1,
          push = (room - d) / 2;
        if (push <= 0.01) continue;
        still = false;
        a[0] += (dx / d) * push;
        a[1] += (dy / d) * push;
        b[0] -= (dx / d) * push;
        b[1] -= (dy / d) * push;
      }
    for (const p of places) for (const k of [0, 1]) p[k] = Math.min(most, Math.max(least, p[k]));
    if (still) break;
  }
  return places;
}
