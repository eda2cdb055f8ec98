// Scales tell true numbers: a metric that rises to 1 is drawn by its distance from it, and still says itself.
function scale(values, column, top, bottom) {
  values = values.filter(known);
  const { rises, highest, collapsed } = data.columns[column];
  const mirrored = rises && known(highest),
    away = (v) => (mirrored ? Math.max(0, highest - v) : v);
  const above = values.map(away).filter((v) => v > 1e-12);
  if (state.log && known(collapsed) && above.length) return logarithmic();
  let lo = Math.min(...values),
    hi = Math.max(...values);
  if (!values.length) [lo, hi] = [0, 1];
  const room = (hi - lo) * 0.06 || Math.abs(hi) * 0.1 || 0.1;
  [lo, hi] = [lo - room, hi + room];
  const raw = (hi - lo) / 4,
    base = 10 ** Math.floor(Math.log10(raw));
  const step = base * [1, 2, 5, 10].find((m) => m * base >= raw),
    ticks = [];
  for (let k = Math.ceil(lo / step); k * step <= hi; k++) ticks.push(k * step);
  const y = (v) => bottom + ((v - lo) / (hi - lo)) * (top - bottom);
  return { y, ticks: ticks.map((v) => [y(v), fmt(v, 6)]) };

  function logarithmic() {
    const zero = values.some((v) => away(v) <= 1e-12),
      gap = zero ? 22 : 0;
    let lo = Math.log10(Math.min(...above)),
      hi = Math.log10(Math.max(...above));
    const room = Math.max((hi - lo) * 0.06, 0.04);
    [lo, hi] = [lo - room, hi + room];
    const [far, near] = mirrored ? [bottom, top + gap] : [top, bottom - gap];
    const at = (v) => near + ((Math.log10(v) - lo) / (hi - lo)) * (far - near);
    const y = (v) => (away(v) > 1e-12 ? at(away(v)) : mirrored ? top : bottom),
      ticks = [];
    const steps =
      hi - lo > 2.2
        ? [1]
        : hi - lo > 0.9
          ? [1, 2, 5]
          : hi - lo > 0.35
            ? [1, 1.5, 2, 3, 5, 7]
            : [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9];
    for (let e = Math.floor(lo); e <= Math.ceil(hi); e++)
      for (const m of steps) {
        const v = m * 10 ** e;
        if (Math.log10(v) >= lo && Math.log10(v) <= hi) ticks.push([at(v), fmt(mirrored ? highest - v : v, 8)]);
      }
    if (zero) ticks.unshift([mirrored ? top : bottom, fmt(mirrored ? highest : 0)]);
    return { y, ticks: apart(ticks, 15) };
  }
}
const apart = (ticks, least) =>
  ticks.reduce((kept, t) => (kept.every((k) => Math.abs(k[0] - t[0]) >= least) ? [...kept, t] : kept), []);
