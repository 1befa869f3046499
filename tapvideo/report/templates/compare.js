/* ---- the page ---- */
const payload = JSON.parse(document.getElementById("payload").textContent);

const clipsRoot = document.querySelector(".clips"), frontierRoot = document.querySelector(".frontier");
const watch = clipsRoot ? setUpClips(clipsRoot) : null;
if (frontierRoot) setUpFrontier(frontierRoot, watch);
const table = document.querySelector("table");
if (table) setUpTable(table.closest(".card"));

for (const box of document.querySelectorAll(".diagnostics [data-chart]")) {
  const list = payload.charts[box.dataset.chart].map((s, i) => ({ ...s, colour: `var(--s${i % 8})`, dash: Math.floor(i / 8) % 3, strong: true }));
  curves(box, box.parentElement.querySelector(".readout"), { series: () => list, xLabel: "step", yLabel: "", height: list.length > 6 ? 320 : 220 });
}
for (const root of document.querySelectorAll(".diagnostics .map")) {
  whenSeen(root, () => setUpMap(root, payload.maps[root.dataset.map]));
}
