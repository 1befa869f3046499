/* ---- the page ---- */
const payload = JSON.parse(document.getElementById("payload").textContent);

const clipsRoot = document.querySelector(".clips"), frontierRoot = document.querySelector(".frontier");
const watch = clipsRoot ? setUpClips(clipsRoot) : null;
if (frontierRoot) setUpFrontier(frontierRoot, watch);
const table = document.querySelector("table");
if (table) setUpTable(table.closest(".card"));

for (const box of document.querySelectorAll(".diagnostics .plot")) {
  const { series } = payload.charts[box.dataset.block][box.dataset.chart];
  const list = series.map((s, i) => ({ ...s, colour: `var(--s${i % 8})`, strong: true }));
  curves(box, box.parentElement.querySelector(".readout"), { series: () => list, xLabel: "step", yLabel: "", height: 200 });
}
