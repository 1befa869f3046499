/* ---- clips: synchronised players, and the curves of the clip that is shown ---- */
const MOST_CHOSEN = 4;

function setUpClips(root) {
  const pair = root.querySelector(".pair"), screens = root.querySelector(".screens"), missing = root.querySelector(".missing");
  const budgets = [...root.querySelectorAll(".budgets button")], chips = [...root.querySelectorAll(".chip")];
  const first = payload.methods.findIndex((m) => m.reference);
  const state = { pair: 0, budget: payload.budget, chosen: payload.chosen.slice(0, MOST_CHOSEN) };
  const clipOf = (method) => payload.clips.find((c) => c.pair === state.pair && c.method === method && (c.budget === state.budget || (c.budget === null && payload.methods[method].reference)));
  const shown = () => [first, ...state.chosen.filter((m) => m !== first)].filter((m) => m >= 0);

  const difference = setUpDifference(root);
  const player = synchronise(root.querySelector(".player"), (frame) => { difference.draw(); plots?.mark(frame); });
  const plots = setUpCurves(root, clipOf, shown, player);

  const update = () => {
    const found = new Map(payload.methods.map((_, i) => [i, clipOf(i)]));
    chips.forEach((chip) => {
      const method = Number(chip.dataset.method);
      chip.setAttribute("aria-pressed", String(state.chosen.includes(method)));
      chip.disabled = !found.get(method);
      chip.title = chip.disabled ? "has no clip here" : "";
    });
    budgets.forEach((b) => b.setAttribute("aria-pressed", String(Number(b.dataset.budget) === state.budget)));
    const clips = shown().map((m) => found.get(m)).filter(Boolean);
    const ready = clips.filter((c) => c.video !== null), { frames, fps, width } = payload.pairs[state.pair];
    missing.hidden = ready.length === clips.length && ready.length > 0;
    missing.textContent = ready.length ? `No video in this page: ${clips.filter((c) => c.video === null).map((c) => payload.methods[c.method].label).join(", ")}.`
      : "The videos of this clip are not in this page.";
    screens.parentElement.hidden = !ready.length || !frames;
    screens.parentElement.classList.toggle("tiny", width < 320);
    const panes = ready.map((c) => makePane(c, payload.pairs[state.pair]));
    screens.replaceChildren(...panes.map((p) => p.figure));
    screens.style.setProperty("--pane", `${width < 320 ? 190 : 300}px`);
    difference.use(panes, ready.length > 1 && ready[0].method === first);
    if (frames) player.load(panes.map((p) => p.video), frames, fps);
    plots.again();
  };

  pair.addEventListener("change", () => { state.pair = Number(pair.value); update(); });
  budgets.forEach((b) => b.addEventListener("click", () => { state.budget = Number(b.dataset.budget); update(); }));
  chips.forEach((chip) => chip.addEventListener("click", () => { choose(Number(chip.dataset.method)); update(); }));
  const choose = (method) => {
    if (state.chosen.includes(method)) {
      if (state.chosen.length > 1) state.chosen = state.chosen.filter((m) => m !== method);
    } else state.chosen = [...state.chosen, method].slice(-MOST_CHOSEN); /* the one chosen first makes room */
  };
  root.querySelector(".back").addEventListener("click", () => player.step(-1));
  root.querySelector(".forward").addEventListener("click", () => player.step(1));
  root.querySelector(".rate").addEventListener("change", (event) => player.setRate(Number(event.target.value)));
  update();
  if (!calm) whenSeen(root.querySelector(".player"), player.play);

  return (method, budget) => {
    state.budget = budget;
    if (!state.chosen.includes(method)) choose(method);
    update();
    root.scrollIntoView({ behavior: calm ? "auto" : "smooth" });
  };
}

const urls = new Map();
function videoUrl(index) {
  if (!urls.has(index)) urls.set(index, URL.createObjectURL(new Blob([bytes(document.getElementById(`video-${index}`).textContent)], { type: "video/mp4" })));
  return urls.get(index);
}

function makePane(clip, { width, height, prompt }) {
  const method = payload.methods[clip.method];
  const figure = document.createElement("figure"), screen = document.createElement("div"), caption = document.createElement("figcaption");
  const video = document.createElement("video"), canvas = document.createElement("canvas"), name = document.createElement("b");
  Object.assign(video, { muted: true, playsInline: true, preload: "auto", width, height, src: videoUrl(clip.video) });
  Object.assign(canvas, { width, height, hidden: true });
  video.setAttribute("aria-label", `${method.label}: ${prompt}`);
  screen.className = "screen";
  const symbol = document.createElementNS(SVG, "svg");
  symbol.setAttribute("class", "mark");
  symbol.setAttribute("viewBox", "-6 -6 12 12");
  symbol.setAttribute("aria-hidden", "true");
  symbol.style.color = colourOf(clip.method);
  draw(symbol, "use", { href: `#mark-${method.mark}`, x: -6, y: -6, width: 12, height: 12 });
  name.append(symbol, method.short);
  const figures = payload.metrics.filter((m) => !method.reference && Number.isFinite(clip.metrics[m.key] ?? NaN)).slice(0, 2);
  const parts = [
    clip.passes === null ? null : `${Number(clip.passes.toFixed(1))} passes`,
    clip.speedup === null || clip.budget === null ? null : `${clip.speedup.toFixed(2)}\u00d7`,
    ...figures.map((m) => `${m.label} ${valueText(m, clip.metrics[m.key])}`),
  ];
  caption.append(name, parts.filter(Boolean).join(" \u00b7 "));
  screen.append(video, canvas);
  figure.append(screen, caption);
  video.addEventListener("error", () => { caption.append(" \u00b7 this browser cannot play it"); });
  return { figure, video, canvas };
}

/* Every pane but the first shows its difference from the first, when asked to. */
function setUpDifference(root) {
  const button = root.querySelector(".compare"), amplify = root.querySelector(".amplify"), gain = root.querySelector(".gain");
  let panes = [], on = false;
  const draw = () => {
    if (!on) return;
    const [base, ...others] = panes;
    for (const { video, canvas } of others) {
      const context = canvas.getContext("2d");
      context.globalCompositeOperation = "copy";
      context.drawImage(base.video, 0, 0, canvas.width, canvas.height);
      context.globalCompositeOperation = "difference";
      context.drawImage(video, 0, 0, canvas.width, canvas.height);
    }
  };
  const apply = () => {
    panes.forEach(({ canvas }, i) => { canvas.hidden = !on || i === 0; });
    draw();
  };
  button.addEventListener("click", () => {
    on = !on;
    button.setAttribute("aria-pressed", String(on));
    amplify.hidden = !on;
    apply();
  });
  gain.addEventListener("change", () => root.style.setProperty("--gain", gain.value));
  return { draw, use: (list, possible) => { panes = possible ? list : []; button.disabled = !possible; apply(); } };
}

/* Two plots of the clip at hand: PSNR of every frame, and the latents' error after every step. */
function setUpCurves(root, clipOf, shown, player) {
  const [psnr, error] = ["framePsnr", "stepError"].map((name) => root.querySelector(`[data-curve=${name}]`));
  const series = (name, offset) => () => payload.methods.flatMap((method, i) => {
    const values = clipOf(i)?.[name] ?? [];
    if (!values.length || values.every((v) => v === null)) return [];
    return [{ name: method.short, colour: colourOf(i), mark: method.mark, strong: shown().includes(i), points: values.map((v, x) => [x + offset, v]) }];
  });
  const readout = (box) => box.parentElement.querySelector(".readout");
  const psnrPlot = curves(psnr, readout(psnr), {
    series: series("framePsnr", 1), xLabel: "frame", yLabel: "PSNR of the frame, dB", unit: " dB",
    hint: "Choose a frame to see it above.", pick: (frame) => player.go(frame - 1),
  });
  const errorPlot = curves(error, readout(error), {
    series: series("stepError", 0), xLabel: "step", yLabel: "Relative L2 error of the latents", log: true,
    hint: "Error to the un-accelerated latents after each step.",
  });
  return { again: () => { psnrPlot.again(); errorPlot.again(); }, mark: (frame) => psnrPlot.mark(frame + 1) };
}
