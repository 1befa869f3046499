const payload = JSON.parse(document.getElementById("payload").textContent);
const palette = payload.colours.map(rgb);

/* ---- players ---- */
function setUpClipPlayer(root) {
  const videos = [...root.querySelectorAll("video, .screens img")];
  const drawDifference = setUpDifference(root, videos);
  if (root.classList.contains("still")) return;
  videos.forEach((v) => { v.controls = false; blobOnError(v); });
  const player = synchronise(root, drawDifference);
  player.load(videos, Number(root.dataset.frames), Number(root.dataset.fps));
  if (!calm) whenSeen(root, player.play);
}

function setUpDifference(root, videos) {
  const figure = root.querySelector(".difference"), button = root.querySelector(".compare");
  if (!figure) return () => {};
  const canvas = figure.querySelector("canvas"), context = canvas.getContext("2d"), gain = figure.querySelector(".gain");
  const draw = () => {
    if (figure.hidden) return;
    context.globalCompositeOperation = "copy";
    context.drawImage(videos[0], 0, 0, canvas.width, canvas.height);
    context.globalCompositeOperation = "difference";
    context.drawImage(videos[1], 0, 0, canvas.width, canvas.height);
  };
  button.addEventListener("click", () => {
    figure.hidden = !figure.hidden;
    button.setAttribute("aria-pressed", String(!figure.hidden));
    draw();
  });
  gain.addEventListener("change", () => figure.style.setProperty("--gain", gain.value));
  return draw;
}

/* ---- timeline: point, focus or choose a step ---- */
function setUpTimeline(root, choose) {
  const buttons = [...root.querySelectorAll(".columns button")], readout = root.querySelector(".readout");
  const say = (button) => { readout.textContent = button.getAttribute("aria-label"); };
  const mark = (step) => buttons.forEach((b) => {
    const here = Number(b.dataset.step) === step;
    here ? b.setAttribute("aria-current", "step") : b.removeAttribute("aria-current");
    if (here) say(b);
  });
  const columns = root.querySelector(".columns");
  const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
  columns.addEventListener("keydown", (event) => {
    if (!(event.key in moves)) return;
    event.preventDefault();
    const from = buttons.indexOf(document.activeElement);
    const to = buttons[Math.max(0, Math.min(buttons.length - 1, from + moves[event.key]))];
    buttons.forEach((b) => { b.tabIndex = b === to ? 0 : -1; });
    to.focus();
    choose(Number(to.dataset.step));
  });
  for (const b of buttons) {
    b.addEventListener("pointerenter", () => say(b));
    b.addEventListener("click", () => choose(Number(b.dataset.step)));
  }
  columns.addEventListener("pointerleave", () => {
    const current = root.querySelector("[aria-current]");
    if (current) say(current);
  });
  return mark;
}

/* ---- maps: one small grid per latent frame ---- */
async function setUpMaps(root, packed, video, player, onStep) {
  const maps = {};
  for (const [name, m] of Object.entries(packed)) maps[name] = { ...m, choice: await inflate(m.data) };
  const branch = root.querySelector(".branch"), slider = root.querySelector(".step"), at = root.querySelector(".at");
  const readout = root.querySelector(".maps .readout"), play = root.querySelector(".play");
  const current = () => maps[branch ? branch.value : Object.keys(maps)[0]];
  const [t, h, w] = current().grid;
  const cells = layOut(root.querySelector(".latents"), t, h, w, player);
  let only = null, timer = null;

  const draw = () => {
    const m = current(), position = Number(slider.value), base = position * t * h * w;
    cells.forEach(({ map, frame }, i) => paint(map, m.choice.subarray(base + i * h * w, base + (i + 1) * h * w), palette, payload.labels, `frame ${frame + 1}`, only));
    at.textContent = `step ${m.steps[position]}`;
    slider.setAttribute("aria-valuetext", at.textContent);
    onStep(m.steps[position]);
  };
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
  const choose = (step) => {
    const position = current().steps.indexOf(step);
    if (position < 0) return;
    slider.value = position;
    draw();
  };
  slider.max = current().steps.length - 1;
  slider.value = Math.floor(current().steps.length / 2);
  slider.addEventListener("input", () => { stop(); draw(); });
  branch?.addEventListener("change", () => {
    slider.max = current().steps.length - 1;
    draw();
  });
  play.addEventListener("click", () => {
    if (timer) return stop();
    play.textContent = "Pause";
    timer = setInterval(() => { slider.value = (Number(slider.value) + 1) % (Number(slider.max) + 1); draw(); }, 280);
  });
  root.querySelectorAll(".legend button").forEach((b) => b.addEventListener("click", () => {
    const index = Number(b.dataset.label);
    only = only === index ? null : index;
    root.querySelectorAll(".legend button").forEach((o) => o.setAttribute("aria-pressed", String(Number(o.dataset.label) === only)));
    draw();
  }));
  cells.forEach((cell, i) => cell.map.addEventListener("pointermove", (event) => {
    const x = Math.min(w - 1, Math.floor(event.offsetX / cell.map.clientWidth * w));
    const y = Math.min(h - 1, Math.floor(event.offsetY / cell.map.clientHeight * h));
    const index = current().choice[((Number(slider.value) * t + i) * h + y) * w + x];
    readout.textContent = `${at.textContent} · latent frame ${i}, row ${y}, column ${x} · ${payload.labels[index]}`;
  }));
  draw();
  drawPictures(video, cells, player);
  return choose;
}

function layOut(grid, t, h, w, player) {
  const frames = Number(player.dataset.frames);
  if (t <= 7) grid.style.setProperty("--cell", `${Math.min(460, Math.floor(960 / t) - 14)}px`);
  return Array.from({ length: t }, (_, i) => {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    const picture = document.createElement("canvas"), map = document.createElement("canvas");
    const frame = t > 1 ? Math.round(i * (frames - 1) / (t - 1)) : 0;
    picture.className = "picture";
    picture.setAttribute("role", "img");
    const still = player.classList.contains("still"), place = still ? "the picture" : `frame ${frame + 1}`;
    picture.setAttribute("aria-label", still ? place : `${place} of the video`);
    map.width = w;
    map.height = h;
    map.setAttribute("role", "img");
    caption.textContent = place;
    figure.append(picture, map, caption);
    grid.append(figure);
    return { picture, map, frame };
  });
}

/* The clip's own pictures at the latent frames, taken from a silent copy of the video. */
async function drawPictures(video, cells, player) {
  if (player.classList.contains("still")) return drawStill(video, cells[0].picture);
  const copy = video.cloneNode();
  blobOnError(copy);
  if (copy.readyState < 2) await new Promise((done) => copy.addEventListener("loadeddata", done, { once: true }));
  const scale = Math.min(1, 320 / copy.videoWidth);
  for (const { picture, frame } of cells) {
    copy.currentTime = (frame + 0.5) / Number(player.dataset.fps);
    await new Promise((done) => copy.addEventListener("seeked", done, { once: true }));
    picture.width = copy.videoWidth * scale;
    picture.height = copy.videoHeight * scale;
    picture.getContext("2d").drawImage(copy, 0, 0, picture.width, picture.height);
  }
}

async function drawStill(image, picture) {
  await image.decode();
  const scale = Math.min(1, 320 / image.naturalWidth);
  picture.width = image.naturalWidth * scale;
  picture.height = image.naturalHeight * scale;
  picture.getContext("2d").drawImage(image, 0, 0, picture.width, picture.height);
}

for (const clip of document.querySelectorAll(".clip")) {
  const player = clip.querySelector(".player"), steps = clip.querySelector(".steps"), maps = clip.querySelector(".maps");
  let chooseMap = () => {};
  const mark = steps ? setUpTimeline(steps, (step) => { mark(step); chooseMap(step); }) : () => {};
  setUpClipPlayer(player);
  if (maps) whenSeen(maps, async () => {
    chooseMap = await setUpMaps(clip.querySelector(".predictors"), payload.maps[clip.dataset.clip], [...player.querySelectorAll("video, .screens img")].at(-1), player, mark);
  });
}
