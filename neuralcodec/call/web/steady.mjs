// Less flicker: what hardly differs from the picture shown before changes half as much. PictureSmoother of
// neuralcodec/smoothing.py, for RGBA.

const BLOCK = 16, CALM = 2, MOVED = 8, LEFT_OUT = 0.5;

export class Steady {
  constructor(size) {
    const blocks = size / BLOCK, places = Array.from({ length: size }, (_, i) => Math.min(blocks - 1, Math.max(0, (i + 0.5) / BLOCK - 0.5)));
    [this.size, this.blocks, this.last] = [size, blocks, null];
    this.before = Int32Array.from(places, Math.floor); // of each pixel the blocks whose centres lie before and after it
    this.after = this.before.map((block) => Math.min(block + 1, blocks - 1));
    this.way = Float32Array.from(places, (at) => at % 1); // how far on the way it is
    this.shares = new Float32Array(blocks * blocks);
  }
  /** The picture to show for one of size * size, in place; the first one passes unchanged. */
  smooth(picture) {
    const { size, blocks, shares, before, after, way } = this;
    if (!this.last) {
      this.last = Float32Array.from(picture);
      return picture;
    }
    const last = this.last;
    for (let row = 0; row < blocks; row++) {
      for (let column = 0; column < blocks; column++) {
        let apart = 0;
        for (let y = row * BLOCK; y < (row + 1) * BLOCK; y += 2) {
          for (let at = 4 * (y * size + column * BLOCK), end = at + 4 * BLOCK; at < end; at += 8) {
            apart += Math.abs(last[at] - picture[at]) + Math.abs(last[at + 1] - picture[at + 1]) + Math.abs(last[at + 2] - picture[at + 2]);
          }
        }
        const share = (MOVED - apart / (3 * (BLOCK / 2) ** 2)) / (MOVED - CALM);
        shares[row * blocks + column] = LEFT_OUT * Math.min(1, Math.max(0, share));
      }
    }
    for (let y = 0, at = 0; y < size; y++) {
      const above = before[y] * blocks, below = after[y] * blocks, down = way[y];
      for (let x = 0; x < size; x++, at += 4) {
        const left = before[x], right = after[x], across = way[x];
        const high = shares[above + left] + across * (shares[above + right] - shares[above + left]);
        const low = shares[below + left] + across * (shares[below + right] - shares[below + left]);
        const share = high + down * (low - high);
        for (let i = at; i < at + 3; i++) {
          last[i] = picture[i] + share * (last[i] - picture[i]); // not rounded: small steps would never arrive
          picture[i] = last[i];
        }
      }
    }
    return picture;
  }
}
