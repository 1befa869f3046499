/* ---- charts: axes, scales and curves as SVG, drawn for the width there is ---- */
const SVG = "http://www.w3.org/2000/svg";

function draw(parent, name, attributes = {}, text = null) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  parent.append(element);
  return element;
}

function scale([from, to], [start, end], log = false) {
  const f = log ? Math.log : (v) => v;
  const [a, b] = [f(from), f(to)];
  return (v) => (a === b ? (start + end) / 2 : start + (f(v) - a) / (b - a) * (end - start));
}

function niceTicks(from, to, count) {
  const raw = (to - from) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((m) => m * power >= raw * 0.999) * power;
  if (!(step > 0)) return [from];
  const first = Math.ceil(from / step - 1e-9), last = Math.floor(to / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function logTicks(from, to) {
  const ticks = [];
  for (let e = Math.floor(Math.log10(from)); e <= Math.ceil(Math.log10(to)); e++) ticks.push(Number(`1e${e}`));
  const inside = ticks.filter((t) => t >= from * 0.999 && t <= to * 1.001);
  return inside.length > 1 ? inside.filter((_, i) => i % Math.ceil(inside.length / 6) === 0) : niceTicks(from, to, 4).filter((t) => t > 0);
}

function shortNumber(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(size && Number.isInteger(Math.log10(size)) ? 0 : 1).replace("e+", "e").replace("-", "\u2212");
  return String(Number(value.toPrecision(4))).replace("-", "\u2212");
}

/* Axes of a plot of the box's width: { svg, area, x, y, left, right, top, bottom }. */
function axes(box, { x, y, height, label }) {
  const width = Math.max(220, box.clientWidth);
  const yTicks = y.ticks ?? (y.log ? logTicks(...y.domain) : niceTicks(...y.domain, 5));
  const texts = yTicks.map(y.format ?? shortNumber);
  const left = 14 + 7 * Math.max(...texts.map((t) => t.length), 2), right = width - 14, top = 26, bottom = height - 40;
  const svg = draw(box, "svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label });
  const px = scale(x.domain, [left, right], x.log), py = scale(y.domain, [bottom, top], y.log);
  draw(svg, "text", { x: 0, y: 12, class: "name" }, y.label);
  draw(svg, "text", { x: right, y: height - 4, "text-anchor": "end", class: "name" }, x.label);
  yTicks.forEach((tick, i) => {
    draw(svg, "line", { class: "grid", x1: left, x2: right, y1: py(tick), y2: py(tick) });
    draw(svg, "text", { x: left - 8, y: py(tick) + 4, "text-anchor": "end" }, texts[i]);
  });
  let edge = -Infinity;
  for (const tick of [...x.ticks].sort((a, b) => px(a) - px(b))) {
    const text = (x.format ?? shortNumber)(tick), half = 3.6 * text.length + 5;
    draw(svg, "line", { class: "grid", x1: px(tick), x2: px(tick), y1: top, y2: bottom });
    if (px(tick) - half < edge) continue;
    edge = px(tick) + half;
    draw(svg, "text", { x: px(tick), y: bottom + 18, "text-anchor": "middle" }, text);
  }
  draw(svg, "line", { class: "base", x1: left, x2: right, y1: bottom, y2: bottom });
  return { svg, x: px, y: py, left, right, top, bottom };
}

/* Draw now and whenever the box has another width; returns a function that draws again. */
function responsive(box, paint) {
  let width = -1;
  const again = () => { box.replaceChildren(); width = box.clientWidth; paint(); };
  new ResizeObserver(() => { if (box.clientWidth && box.clientWidth !== width) again(); }).observe(box);
  return again;
}

function spread(values, log) {
  const usable = values.filter((v) => v !== null && Number.isFinite(v) && (!log || v > 0));
  if (!usable.length) return null;
  let from = Math.min(...usable), to = Math.max(...usable);
  if (from === to) [from, to] = log ? [from / 2, to * 2] : [from - (Math.abs(from) * 0.1 || 1), to + (Math.abs(to) * 0.1 || 1)];
  const room = log ? (to / from) ** 0.05 : (to - from) * 0.06;
  return log ? [from / room, to * room] : [from - room, to + room];
}

/* Curves with a cursor. `series`: [{ name, colour, points: [[x, y or null]], strong, mark, dash }]; `say(x or null)` fills the
   readout; `pick(x)` is called on a click. Returns { again, mark(x) }: mark draws a second cursor from outside. */
function curves(box, readout, { series, xLabel, yLabel, log = false, height = 240, unit = "", hint = "", pick = null, of = (x) => `${xLabel} ${x}` }) {
  let view = null, here = null, outside = null;
  const say = () => {
    if (here === null) { readout.textContent = hint; return; }
    const parts = series().filter((s) => s.strong).map((s) => {
      const found = s.points.find(([x]) => x === here);
      return found && found[1] !== null ? `${s.name} ${shortNumber(found[1])}${unit}` : null;
    }).filter(Boolean);
    readout.textContent = [of(here), ...parts].join(" \u00b7 ");
  };
  const place = (line, x) => {
    line.toggleAttribute("hidden", x === null || !view);
    if (x === null || !view) { line.setAttribute("display", "none"); return; }
    line.removeAttribute("display");
    for (const [k, v] of Object.entries({ x1: view.x(x), x2: view.x(x), y1: view.top, y2: view.bottom })) line.setAttribute(k, v);
  };
  let cursor = null, now = null;
  const paint = () => {
    const list = series(), xs = [...new Set(list.flatMap((s) => s.points.map(([x]) => x)))].sort((a, b) => a - b);
    const range = spread(list.flatMap((s) => s.points.map(([, y]) => y)), log);
    view = null;
    if (!range || !xs.length) { box.textContent = ""; readout.textContent = `No ${yLabel} here.`; return; }
    const domain = xs.length > 1 ? [xs[0], xs.at(-1)] : [xs[0] - 1, xs[0] + 1];
    const whole = xs.every(Number.isInteger), ticks = niceTicks(...domain, 8).filter((t) => !whole || Number.isInteger(t));
    view = axes(box, { x: { domain, ticks, label: xLabel }, y: { domain: range, log, label: yLabel }, height, label: `${yLabel} by ${xLabel}` });
    for (const s of [...list].sort((a, b) => a.strong - b.strong)) line(view, s, log);
    now = draw(view.svg, "line", { class: "now" });
    cursor = draw(view.svg, "line", { class: "cursor" });
    place(now, outside); place(cursor, here);
    listen(view.svg, xs);
    say();
  };
  const listen = (svg, xs) => {
    svg.setAttribute("tabindex", 0);
    const at = (event) => {
      const mouse = event.clientX - svg.getBoundingClientRect().left;
      return xs.reduce((best, x) => (Math.abs(view.x(x) - mouse) < Math.abs(view.x(best) - mouse) ? x : best));
    };
    const move = (x) => { here = x; place(cursor, here); say(); };
    svg.addEventListener("pointermove", (event) => move(at(event)));
    svg.addEventListener("pointerdown", (event) => { move(at(event)); pick?.(at(event)); });
    svg.addEventListener("pointerleave", () => move(null));
    svg.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by) return;
      event.preventDefault();
      const from = xs.indexOf(here);
      move(xs[from < 0 ? (by > 0 ? 0 : xs.length - 1) : Math.max(0, Math.min(xs.length - 1, from + by))]);
      pick?.(here);
    });
  };
  return { again: responsive(box, paint), mark: (x) => { outside = x; if (now) place(now, x); } };
}

/* One curve: a path with gaps where there is no value, and a dot for a value between gaps. */
function line(view, { points, colour, strong, mark = null, dash = 0 }, log) {
  const group = draw(view.svg, "g", { style: `color:${colour}`, class: strong ? "" : "faint" });
  const good = ([, y]) => y !== null && (!log || y > 0);
  let path = "";
  points.forEach((point, i) => {
    if (!good(point)) return;
    const before = i > 0 && good(points[i - 1]), after = i + 1 < points.length && good(points[i + 1]);
    path += `${before ? "L" : "M"}${view.x(point[0]).toFixed(1)} ${view.y(point[1]).toFixed(1)}`;
    if (!before && !after) draw(group, "circle", { cx: view.x(point[0]), cy: view.y(point[1]), r: 2.4, fill: "currentColor" });
  });
  draw(group, "path", { class: `line${strong ? " strong" : ""}${dash ? ` dash-${dash}` : ""}`, d: path });
  if (!strong || mark === null) return;
  const usable = points.filter(good), every = Math.max(1, Math.ceil(usable.length / 6)); /* shades of one family look alike */
  usable.filter((_, i) => i % every === Math.floor(every / 2)).forEach(([x, y]) => {
    draw(group, "use", { class: "point", href: `#mark-${mark}`, x: view.x(x) - 6, y: view.y(y) - 6, width: 12, height: 12 });
  });
}
