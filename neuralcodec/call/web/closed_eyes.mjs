// Closed eyes out of an earlier picture, where the latest one shows them open: neuralcodec/closed_eyes.py, for RGBA.

const EYES = [[0, 1, 2, 3], [4, 5, 6, 7]]; // keypoints: outer corner, inner corner, upper lid, lower lid
const POINTS = 30, RISE = 1, FALL = 5, SHUT = 0.4, CLOSING = 0.5;
const WIDE = 0.2, HIGH = 0.13, SOLID = 2, EDGE = 0.2, SKIN = [0.1, 0.3], APART = 32;

/** Of both eyes of a face (K keypoints of 3, in the head's own frame), in eye widths; null for an unknown layout. */
function openings(canonical, delta) {
  if (canonical.length !== 3 * POINTS) return null;
  const at = (k, i) => canonical[3 * k + i] + delta[3 * k + i];
  return EYES.map(([outer, inner, upper, lower]) => (at(lower, 1) - at(upper, 1)) / Math.max(1e-6, Math.hypot(...[0, 1, 2].map((i) => at(outer, i) - at(inner, i)))));
}

export class ClosedEyes {
  constructor() { [this.usual, this.seconds, this.kept] = [null, 0, null]; }
  /** The picture that the eyes of the frame at ``seconds`` are to come from, where that is not ``picture``. Pictures are
   *  { face, shot, ... }, the face as Networks.estimate gives it; delta: of the frame, on the picture's canonical. */
  needed(picture, delta, seconds) {
    const { canonical, motion } = picture.face, found = openings(canonical, delta);
    if (!found) return null;
    const elapsed = Math.max(0, seconds - this.seconds);
    this.seconds = seconds;
    this.usual = (this.usual ?? found).map((before, i) => before + (found[i] - before) * (1 - Math.exp(-elapsed / (found[i] > before ? RISE : FALL))));
    const less = (now, share) => now.every((value, i) => value < share * Math.max(1e-6, this.usual[i]));
    if (less(openings(canonical, motion.delta), SHUT)) this.kept = picture;
    else if (this.kept?.shot === picture.shot && less(found, CLOSING)) return this.kept;
    return null;
  }
}

/** RGBA of size * size with the eyes of ``other``, both drawn with these keypoints (K of 3, the picture being -1..1). The
 *  skin around them tells how the light differs; where it differs too much the picture comes back as it is. */
export function withEyes(picture, other, keypoints, size) {
  const at = (k) => [0, 1].map((i) => (keypoints[3 * k + i] + 1) * (size - 1) / 2), out = picture.slice();
  const corners = EYES.map(([outer]) => at(outer)), apart = Math.hypot(corners[0][0] - corners[1][0], corners[0][1] - corners[1][1]);
  const reach = Math.sqrt(-2 * Math.log(SKIN[0])), bell = (from, middle, spread) => Math.exp(-0.5 * ((from - middle) / spread) ** 2);
  for (const eye of EYES) {
    const spread = [WIDE, HIGH].map((part) => part * Math.max(apart, 1));
    const middle = [0, 1].map((i) => eye.reduce((sum, k) => sum + at(k)[i] / 4, 0));
    const low = middle.map((value, i) => Math.max(0, Math.floor(value - reach * spread[i])));
    const high = middle.map((value, i) => Math.min(size, Math.ceil(value + reach * spread[i]) + 1));
    const cells = [], skin = [];
    for (let y = low[1]; y < high[1]; y++) {
      for (let x = low[0]; x < high[0]; x++) {
        const value = bell(y, middle[1], spread[1]) * bell(x, middle[0], spread[0]), cell = 4 * (y * size + x);
        cells.push([cell, Math.max(0, Math.min(1, SOLID * value - EDGE))]);
        if (value > SKIN[0] && value < SKIN[1]) skin.push(cell);
      }
    }
    if (!skin.length) return picture;
    const light = [0, 1, 2].map((c) => skin.reduce((sum, cell) => sum + picture[cell + c] - other[cell + c], 0) / skin.length);
    const differ = skin.reduce((sum, cell) => sum + [0, 1, 2].reduce((all, c) => all + Math.abs(picture[cell + c] - other[cell + c]), 0), 0);
    if (differ > APART * 3 * skin.length) return picture;
    for (const [cell, share] of cells) {
      for (let c = 0; c < 3; c++) out[cell + c] = picture[cell + c] + share * (other[cell + c] + light[c] - picture[cell + c]);
    }
  }
  return out;
}
