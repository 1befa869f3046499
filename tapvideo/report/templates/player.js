"use strict";
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;

const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));

function whenSeen(element, action) {
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((e) => e.isIntersecting)) return;
    observer.disconnect();
    action();
  }, { rootMargin: "100px" }).observe(element);
}

/* Some browsers do not play data URIs: give them the same bytes as a blob. */
function blobOnError(video) {
  video.addEventListener("error", () => {
    const [head, data] = video.src.split(",");
    if (head.startsWith("data:")) video.src = URL.createObjectURL(new Blob([bytes(data)], { type: "video/mp4" }));
  });
}

/* One clock and one scrubber for any set of videos. `root` has .play, .scrub and .frame; `onFrame(frame)` is called
   whenever another frame may be in sight. The last video that can be played is the clock. */
function synchronise(root, onFrame = () => {}) {
  const button = root.querySelector(".play"), scrub = root.querySelector(".scrub"), label = root.querySelector(".frame");
  let videos = [], frames = 1, fps = 1, rate = 1, playing = false;
  const sound = () => videos.filter((v) => !v.error);
  const clock = () => sound().at(-1);

  const show = (frame) => {
    scrub.value = frame;
    scrub.setAttribute("aria-valuetext", `frame ${frame + 1} of ${frames}`);
    label.textContent = `${frame + 1} / ${frames}`;
    onFrame(frame);
  };
  const at = () => Number(scrub.value);
  const seek = (frame) => videos.forEach((v) => { v.currentTime = (frame + 0.5) / fps; });
  const follow = () => {
    const lead = clock();
    if (!playing || !lead) return;
    show(Math.min(frames - 1, Math.floor(lead.currentTime * fps + 0.01)));
    for (const v of sound()) {
      const apart = Math.abs(v.currentTime - lead.currentTime) > 0.7 / fps;
      if (v !== lead && !v.ended && !v.seeking && apart) v.currentTime = lead.currentTime;
    }
    requestAnimationFrame(follow);
  };
  const pause = () => {
    playing = false;
    button.textContent = "Play";
    videos.forEach((v) => v.pause());
    seek(at());
  };
  const start = () => Promise.all(sound().map((v) => {
    v.playbackRate = rate;
    return v.play();
  }));
  const play = async () => {
    if (playing || !clock()) return;
    playing = true;
    button.textContent = "Pause";
    if (at() === frames - 1) seek(0);
    try {
      await start();
      follow();
    } catch { if (playing) pause(); } /* the browser allows no playback, or the reader paused first */
  };
  const go = (frame) => {
    if (playing) pause();
    const inside = Math.max(0, Math.min(frames - 1, frame));
    seek(inside);
    show(inside);
  };
  const onEnded = (event) => {
    if (!playing || event.target !== clock()) return;
    videos.forEach((v) => { v.currentTime = 0; });
    start().catch(() => { if (playing) pause(); });
  };
  const redraw = (event) => { if (videos.includes(event.target)) onFrame(at()); };

  button.addEventListener("click", () => (playing ? pause() : play()));
  scrub.addEventListener("input", () => go(at()));
  return {
    play, go,
    step: (by) => go(at() + by),
    setRate: (value) => { rate = value; videos.forEach((v) => { v.playbackRate = value; }); },
    /* Other videos, at the same frame; playback goes on if it was on. */
    load(list, numFrames, framesPerSecond) {
      const before = Math.min(at(), numFrames - 1), was = playing;
      if (playing) pause();
      [videos, frames, fps] = [list, numFrames, framesPerSecond];
      scrub.max = frames - 1;
      for (const v of videos) {
        v.addEventListener("ended", onEnded);
        v.addEventListener("seeked", redraw);
        v.addEventListener("loadeddata", redraw);
      }
      if (before) seek(before);
      show(before);
      if (was) play();
    },
  };
}
