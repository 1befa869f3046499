/* ---- the table: sorted by any column, filtered by budget ---- */
function setUpTable(root) {
  const heads = [...root.querySelectorAll("thead th")], body = root.querySelector("tbody");
  const rows = body ? [...body.rows] : [];
  rows.forEach((row, i) => { row.dataset.order = i; });

  /* Numbers before text, nothing last whichever way; equals stay as they were. */
  const compare = (a, b, sign) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const [x, y] = [Number(a), Number(b)];
    return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x === y ? 0 : x - y);
  };
  const sort = (column, way) => {
    heads.forEach((h, i) => (i === column ? h.setAttribute("aria-sort", way) : h.removeAttribute("aria-sort")));
    const sign = way === "ascending" ? 1 : -1;
    const key = (row) => row.cells[column].dataset.sort;
    rows.sort((a, b) => compare(key(a), key(b), sign) || a.dataset.order - b.dataset.order);
    body.append(...rows);
  };
  heads.forEach((head, i) => head.querySelector("button").addEventListener("click", () => {
    const now = head.getAttribute("aria-sort");
    sort(i, now ? (now === "ascending" ? "descending" : "ascending") : head.dataset.way);
  }));

  const buttons = [...root.querySelectorAll(".filter button")];
  for (const button of buttons) button.addEventListener("click", () => {
    buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === button)));
    const only = button.dataset.budget;
    rows.forEach((row) => { row.hidden = Boolean(only && row.dataset.budget && row.dataset.budget !== only); });
  });
  const start = [...buttons].find((b) => b.dataset.budget && Number(b.dataset.budget) === payload.budget);
  start?.click();
}
