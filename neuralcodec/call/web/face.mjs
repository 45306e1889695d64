// Where the face is in a reference picture: neuralcodec/face.py in JavaScript, for square RGBA pictures. Both ends look
// at the same pixels in the same way, so that they bend the same keypoints. No browser API and no network of its own.

export const HEAD = [0, -0.126, 0.7]; // where a face usually is: centre x, y and half side, the picture being -1..1
const SIZE = 160, THRESHOLD = 0.5, PROPOSAL = 0.7, PROPOSALS = 4, ZOOM_SCALE = 0.6, SMALLEST_SIDE = 8, CUBIC = 0.6;

/** The surest face of a picture as a box (see HEAD), or HEAD. pixels: RGBA of size * size; run: Float32Array (3, 160, 160)
 *  in 0..1 to a promise of { heatmap, box, cells }, the cells of a side. */
export async function findFace(pixels, size, run) {
  const look = async (square, threshold) => {
    const { heatmap, box, cells } = await run(planes(crop(pixels, size, square, SIZE)));
    const [x, y, half] = [square.x + square.side / 2, square.y + square.side / 2, square.side / 2];
    return decodeFaces(heatmap, box, cells, threshold).map(([cx, cy, h, score]) => ({ x: x + cx * half, y: y + cy * half, half: h * half, score })).sort(heavier);
  };
  const whole = { x: 0, y: 0, side: size };
  let faces = await look(whole, THRESHOLD);
  if (!faces.length) { // a closer look at whatever may be one
    for (const face of (await look(whole, PROPOSAL * THRESHOLD)).slice(0, PROPOSALS)) {
      const closer = (await look(around(face.x, face.y, 2 * face.half / ZOOM_SCALE), THRESHOLD)).find((c) => same(c, face) && !faces.some((s) => same(c, s)));
      if (closer) faces.push(closer);
    }
    faces = faces.sort(heavier);
  }
  return faces.length ? [faces[0].x * 2 / size - 1, faces[0].y * 2 / size - 1, faces[0].half * 2 / size] : HEAD;
}

const heavier = (a, b) => b.score * b.half - a.score * a.half;

function same(a, b) {
  const apart = Math.max(Math.abs(a.x - b.x), Math.abs(a.y - b.y)), ratio = a.half / b.half;
  return apart < 0.7 * Math.max(a.half, b.half) && 0.5 < ratio && ratio < 2;
}

/** The whole-pixel square nearest to a centre and a side. Halves go to the even side, as Python rounds. */
export function around(x, y, side) {
  const whole = Math.max(SMALLEST_SIDE, even(side));
  return { x: even(x - whole / 2), y: even(y - whole / 2), side: whole };
}

function even(value) {
  const low = Math.floor(value);
  return value - low === 0.5 ? low + (low & 1) : Math.round(value);
}

/** Rows of [centre x, centre y, half side, score], surest first, in -1..1 of the network's picture; see decode_faces. */
export function decodeFaces(heatmap, box, cells, threshold) {
  const plane = cells * cells, kept = [], peaks = [];
  for (let at = 0; at < plane; at++) {
    const row = Math.floor(at / cells), column = at % cells;
    let peak = heatmap[at] >= threshold;
    for (let y = Math.max(0, row - 1); peak && y <= Math.min(cells - 1, row + 1); y++) {
      for (let x = Math.max(0, column - 1); x <= Math.min(cells - 1, column + 1); x++) peak &&= heatmap[at] >= heatmap[y * cells + x];
    }
    if (peak) peaks.push(at);
  }
  for (const at of peaks.sort((a, b) => heatmap[b] - heatmap[a])) {
    const x = (at % cells + 0.5 + box[at]) / cells * 2 - 1, y = (Math.floor(at / cells) + 0.5 + box[plane + at]) / cells * 2 - 1;
    const half = Math.exp(Math.min(box[2 * plane + at], 5)) / cells * 2;
    if (kept.every((k) => Math.max(Math.abs(x - k[0]), Math.abs(y - k[1])) > 0.7 * Math.max(half, k[2]))) kept.push([x, y, half, heatmap[at]]);
  }
  return kept;
}

/** A square of a picture, both RGBA; what lies outside repeats the edge. Area means when it shrinks by more than two,
 *  otherwise bicubic, within a level or two of swscale's. */
export function crop(pixels, size, { x, y, side }, out) {
  if (side === out && x >= 0 && y >= 0 && x + side <= size && y + side <= size) {
    const part = new Uint8ClampedArray(4 * out * out);
    for (let row = 0; row < out; row++) part.set(pixels.subarray(4 * ((y + row) * size + x), 4 * ((y + row) * size + x + out)), 4 * row * out);
    return part;
  }
  const inside = (from) => Math.max(0, Math.min(size - 1, from)), kernel = weights(side, out), row = 3 * out;
  const columns = kernel.map(({ from, taps }) => ({ from: from.map((column) => 4 * inside(x + column)), taps }));
  const across = new Float64Array(row * side), sums = new Float64Array(row), result = new Uint8ClampedArray(4 * out * out).fill(255);
  for (let line = 0, to = 0; line < side; line++) {
    const start = 4 * size * inside(y + line);
    for (const { from, taps } of columns) {
      let red = 0, green = 0, blue = 0;
      for (let i = 0; i < taps.length; i++) {
        const at = start + from[i], tap = taps[i];
        red += tap * pixels[at];
        green += tap * pixels[at + 1];
        blue += tap * pixels[at + 2];
      }
      across[to++] = red;
      across[to++] = green;
      across[to++] = blue;
    }
  }
  kernel.forEach(({ from, taps }, line) => {
    sums.fill(0);
    from.forEach((above, i) => { for (let at = 0, tap = taps[i]; at < row; at++) sums[at] += tap * across[above * row + at]; });
    for (let column = 0; column < out; column++) for (let c = 0; c < 3; c++) result[4 * (line * out + column) + c] = sums[3 * column + c];
  });
  return result;
}

/** For each of ``out`` samples of a line of ``length``: the samples it takes, the line's ends repeated, and the share of
 *  each. */
function weights(length, out) {
  const ratio = length / out, shrink = Math.max(1, ratio), area = ratio > 2, reach = area ? ratio / 2 + 0.5 : 2 * shrink;
  return Array.from({ length: out }, (_, index) => {
    const middle = (index + 0.5) * ratio - 0.5, from = [], taps = [];
    for (let at = Math.ceil(middle - reach); at <= middle + reach; at++) {
      const away = Math.abs(at - middle);
      from.push(Math.max(0, Math.min(length - 1, at)));
      taps.push(area ? Math.max(0, Math.min(1, ratio / 2 + 0.5 - away)) : cubic(away / shrink));
    }
    const sum = taps.reduce((total, tap) => total + tap, 0);
    return { from: Int32Array.from(from), taps: Float64Array.from(taps, (tap) => tap / sum) };
  });
}

function cubic(away) {
  if (away < 1) return ((2 - CUBIC) * away - (3 - CUBIC)) * away * away + 1;
  return away < 2 ? CUBIC * (((5 - away) * away - 8) * away + 4) : 0;
}

/** RGBA to Float32Array (3, S, S) in 0..1. */
export function planes(pixels) {
  const plane = pixels.length / 4, values = new Float32Array(3 * plane);
  for (let i = 0; i < plane; i++) for (let c = 0; c < 3; c++) values[c * plane + i] = pixels[4 * i + c] / 255;
  return values;
}
