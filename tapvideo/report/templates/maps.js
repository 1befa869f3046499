/* ---- maps: which predictor each token chose, one byte a token, compressed ---- */
async function inflate(base64) {
  const stream = new Blob([bytes(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

/* One latent frame on its canvas; `only`: the predictor that is singled out, or null. */
function paint(map, choice, palette, labels, place, only) {
  const context = map.getContext("2d"), image = context.createImageData(map.width, map.height);
  const counts = new Map();
  choice.forEach((index, i) => {
    image.data.set(palette[index], 4 * i);
    image.data[4 * i + 3] = only === null || only === index ? 255 : 36;
    counts.set(index, (counts.get(index) ?? 0) + 1);
  });
  context.putImageData(image, 0, 0);
  const top = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 3);
  const parts = top.map(([index, n]) => `${labels[index]} ${Math.round(100 * n / choice.length)} %`);
  map.setAttribute("aria-label", `choices at ${place}: ${parts.join(", ")}`);
}
