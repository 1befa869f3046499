/* ---- the frontier: quality against full passes and against speedup, one point per method and budget ---- */
const colourOf = (method) => `var(--m${method})`;
const budgetText = (budget) => (budget === null ? "" : `${Number(budget.toPrecision(4))}\u00d7`);
const valueText = (metric, value) => (value === null || value === undefined ? "\u2013" : `${value.toFixed(metric.digits)}${metric.unit ? ` ${metric.unit}` : ""}`.replace("-", "\u2212"));

function setUpFrontier(root, watch) {
  const select = root.querySelector(".metric"), details = root.querySelector(".details"), hint = details.firstElementChild;
  const chips = [...root.querySelectorAll(".chip")];
  const rows = payload.rows.filter((r) => r.budget !== null && !payload.methods[r.method].bound);
  const state = { pinned: null, over: null, only: new Set() };
  const metric = () => payload.metrics.find((m) => m.key === select.value);
  const panels = [...root.querySelectorAll(".plot")].map((box) => frontierPanel(box, rows, metric, state, { over, pin }));

  function tell() {
    const row = state.over ?? state.pinned;
    details.replaceChildren(...(row ? describe(row, metric(), watch) : [hint]));
    panels.forEach((p) => p.highlight());
  }
  function over(row) { if (state.over !== row) { state.over = row; tell(); } }
  function pin(row) { state.pinned = state.pinned === row ? null : row; state.over = null; tell(); }

  select.addEventListener("change", () => { panels.forEach((p) => p.again()); tell(); });
  for (const chip of chips) chip.addEventListener("click", () => {
    const method = Number(chip.dataset.method);
    state.only.has(method) ? state.only.delete(method) : state.only.add(method);
    chip.setAttribute("aria-pressed", String(state.only.has(method)));
    panels.forEach((p) => p.highlight());
  });
}

function describe(row, metric, watch) {
  const line = (...parts) => {
    const p = document.createElement("p");
    p.append(...parts);
    return p;
  };
  const name = document.createElement("b");
  name.textContent = row.label;
  const low = row.low[metric.key], high = row.high[metric.key];
  const interval = low !== null && low !== undefined && high !== null && high !== undefined
    ? ` (95\u00a0% interval ${valueText(metric, low)} to ${valueText(metric, high)})` : "";
  const of = payload.steps ? ` of ${payload.steps}` : "";
  const cost = [
    row.passes === null ? null : `${Number(row.passes.toFixed(2))}${of} full passes`,
    row.speedup === null ? null : `measured ${row.speedup.toFixed(2)}\u00d7 faster`,
    `${row.clips} clip${row.clips === 1 ? "" : "s"}`,
  ].filter(Boolean).join(" \u00b7 ");
  const first = line(name, ` at ${budgetText(row.budget)}`);
  if (watch) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Show its clip";
    button.addEventListener("click", () => watch(row.method, row.budget));
    first.append(button);
  }
  return [first, line(`${metric.label} ${valueText(metric, row.mean[metric.key])}${interval}`), line(cost)];
}

function frontierPanel(box, rows, metric, state, on) {
  const axis = box.dataset.axis;
  let points = [], ring = null, groups = [];
  const paint = () => {
    const m = metric(), list = rows.filter((r) => r[axis] > 0 && Number.isFinite(r.mean[m.key] ?? NaN));
    points = []; groups = []; ring = null;
    const name = axis === "passes" ? "full passes" : "speedup";
    if (!list.length) { box.textContent = `No ${m.label} against ${name}.`; return; }
    const view = axes(box, {
      x: { ...horizontal(axis, list), log: true, label: axis === "passes" ? `Full-pass equivalents${payload.steps ? `, of ${payload.steps}` : ""}` : "Measured speedup of denoising" },
      y: { domain: vertical(m, list), label: `${m.label}${m.unit ? `, ${m.unit}` : ""}` },
      height: box.clientWidth < 420 ? 300 : 380, label: `${m.label} against ${name}`,
    });
    const methods = [...new Set(list.map((r) => r.method))].sort((a, b) => a - b);
    const gap = Math.min(4, 40 / methods.length), place = (r) => view.x(r[axis]) + (axis === "passes" ? (methods.indexOf(r.method) - (methods.length - 1) / 2) * gap : 0);
    drawFront(view, list, axis, m);
    for (const method of methods) {
      const own = list.filter((r) => r.method === method).sort((a, b) => a[axis] - b[axis]);
      const group = draw(view.svg, "g", { style: `color:${colourOf(method)}` });
      groups.push({ group, method });
      draw(group, "path", { class: "line", d: own.map((r, i) => `${i ? "L" : "M"}${place(r).toFixed(1)} ${view.y(r.mean[m.key]).toFixed(1)}`).join("") });
      for (const row of own) points.push(drawPoint(group, row, m, place(row), view));
    }
    ring = draw(view.svg, "circle", { class: "ring", r: 9, display: "none" });
    listen(view.svg);
    highlight();
  };
  const listen = (svg) => {
    const nearest = (event) => {
      const rect = svg.getBoundingClientRect(), x = event.clientX - rect.left, y = event.clientY - rect.top;
      const shown = points.filter((p) => !state.only.size || state.only.has(p.row.method));
      const distance = (p) => Math.hypot(p.x - x, p.y - y);
      const best = shown.length ? shown.reduce((a, b) => (distance(b) < distance(a) ? b : a)) : null;
      return best && distance(best) < 34 ? best.row : null;
    };
    svg.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") on.over(nearest(event)); });
    svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") on.over(null); });
    svg.addEventListener("click", (event) => { const row = nearest(event); if (row) on.pin(row); });
    points.forEach((p, i) => { p.mark.setAttribute("tabindex", i ? -1 : 0); });
    svg.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key], from = points.findIndex((p) => p.mark === document.activeElement);
      if (from < 0 || (!by && event.key !== "Enter")) return;
      event.preventDefault();
      if (!by) return on.pin(points[from].row);
      const to = points[(from + by + points.length) % points.length];
      points.forEach((p) => p.mark.setAttribute("tabindex", p === to ? 0 : -1));
      to.mark.focus();
    });
    for (const p of points) {
      p.mark.addEventListener("focus", () => { if (p.mark.matches(":focus-visible")) on.over(p.row); });
      p.mark.addEventListener("blur", () => on.over(null));
    }
  };
  const highlight = () => {
    const row = state.over ?? state.pinned, found = points.find((p) => p.row === row);
    for (const { group, method } of groups) {
      const apart = state.only.size && !state.only.has(method) || (row && !state.only.size && row.method !== method);
      group.classList.toggle("dim", Boolean(apart));
    }
    if (!ring) return;
    found ? ring.removeAttribute("display") : ring.setAttribute("display", "none");
    if (found) { ring.setAttribute("cx", found.x); ring.setAttribute("cy", found.y); }
  };
  return { again: responsive(box, paint), highlight };
}

function drawPoint(group, row, metric, x, view) {
  const y = view.y(row.mean[metric.key]), low = row.low[metric.key], high = row.high[metric.key];
  if (Number.isFinite(low ?? NaN) && Number.isFinite(high ?? NaN)) draw(group, "line", { class: "arm", x1: x, x2: x, y1: view.y(low), y2: view.y(high) });
  const mark = draw(group, "use", { class: "point", href: `#mark-${payload.methods[row.method].mark}`, x: x - 7, y: y - 7, width: 14, height: 14, role: "img" });
  mark.setAttribute("aria-label", `${row.label} at ${budgetText(row.budget)}: ${metric.label} ${valueText(metric, row.mean[metric.key])}`);
  return { row, x, y, mark };
}

/* The best that any method reaches at this cost or less, behind the points. */
function drawFront(view, list, axis, metric) {
  const cheap = (r) => (axis === "passes" ? -r.passes : r.speedup), sign = metric.better === "lower" ? -1 : 1;
  const good = (r) => (metric.better === "zero" ? -Math.abs(r.mean[metric.key]) : sign * r.mean[metric.key]);
  const front = [];
  for (const row of [...list].sort((a, b) => cheap(b) - cheap(a) || good(b) - good(a))) {
    if (!front.length || good(row) > good(front.at(-1))) front.push(row);
  }
  if (front.length > 1) draw(view.svg, "path", { class: "front", d: front.map((r, i) => `${i ? "L" : "M"}${view.x(r[axis]).toFixed(1)} ${view.y(r.mean[metric.key]).toFixed(1)}`).join("") });
}

function horizontal(axis, list) {
  const values = list.map((r) => r[axis]), from = Math.min(...values) / 1.12, to = Math.max(...values) * 1.12;
  if (axis === "passes") {
    const exact = payload.steps ? payload.budgets.map((b) => payload.steps / b).filter((v) => v >= from && v <= to) : [];
    return { domain: [to, from], ticks: exact.length ? exact : niceTicks(from, to, 5), format: (v) => String(Number(v.toFixed(1))) };
  }
  const steps = [0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100];
  return { domain: [from, to], ticks: steps.filter((v) => v >= from && v <= to), format: (v) => `${v}\u00d7` };
}

function vertical(metric, list) {
  const range = spread(list.flatMap((r) => [r.mean[metric.key], r.low[metric.key] ?? null, r.high[metric.key] ?? null]), false);
  return metric.better === "lower" ? range.reverse() : range; /* better is always up */
}
