/* ---- diagnostics: maps with a slider over steps ---- */
async function setUpMap(root, { labels, colours, steps, grid: [t, h, w], data }) {
  const choice = await inflate(data), palette = colours.map(rgb);
  const slider = root.querySelector(".step"), at = root.querySelector(".at"), readout = root.querySelector(".readout");
  const latents = root.querySelector(".latents"), chips = [...root.querySelectorAll(".chip")];
  let only = null;
  const cells = Array.from({ length: t }, (_, i) => {
    const figure = document.createElement("figure"), map = document.createElement("canvas"), caption = document.createElement("figcaption");
    Object.assign(map, { width: w, height: h });
    map.setAttribute("role", "img");
    caption.textContent = `latent frame ${i}`;
    figure.append(map, caption);
    latents.append(figure);
    return map;
  });
  const paintAll = () => {
    const position = Number(slider.value);
    cells.forEach((map, i) => {
      const from = (position * t + i) * h * w;
      paint(map, choice.subarray(from, from + h * w), palette, labels, `latent frame ${i}`, only);
    });
    at.textContent = `step ${steps[position]}`;
    slider.setAttribute("aria-valuetext", at.textContent);
  };
  slider.addEventListener("input", paintAll);
  chips.forEach((chip, index) => chip.addEventListener("click", () => {
    only = only === index ? null : index;
    chips.forEach((c, i) => c.setAttribute("aria-pressed", String(i === only)));
    paintAll();
  }));
  cells.forEach((map, i) => map.addEventListener("pointermove", (event) => {
    const x = Math.min(w - 1, Math.floor(event.offsetX / map.clientWidth * w)), y = Math.min(h - 1, Math.floor(event.offsetY / map.clientHeight * h));
    const index = choice[((Number(slider.value) * t + i) * h + y) * w + x];
    readout.textContent = `${at.textContent} \u00b7 latent frame ${i}, row ${y}, column ${x} \u00b7 ${labels[index]}`;
  }));
  paintAll();
}
