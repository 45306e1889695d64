// A time written into pixels, so that the latency of the very picture that is shown can be read from it. 24 blocks in a
// strip across the picture: white, black, 18 bits of time in milliseconds, 4 bits of checksum; they survive any codec.
export const MARK_ROWS = 16;
const BITS = 18, CHECK = 4, BLOCKS = 2 + BITS + CHECK;
const SPAN = 1 << BITS; // milliseconds until times repeat: four minutes

const checksum = (value) => (value ^ value >> 4 ^ value >> 8 ^ value >> 12 ^ value >> 16 ^ 0x9) & 15;

export function drawMark(context, width, milliseconds) {
  const time = Math.round(milliseconds) % SPAN;
  const bits = [1, 0];
  for (let i = BITS - 1; i >= 0; i--) bits.push(time >> i & 1);
  for (let i = CHECK - 1; i >= 0; i--) bits.push(checksum(time) >> i & 1);
  bits.forEach((bit, index) => {
    context.fillStyle = bit ? "#fff" : "#000";
    context.fillRect(index * width / BLOCKS, 0, width / BLOCKS + 1, MARK_ROWS);
  });
}

const small = document.createElement("canvas");
small.width = 1024;
small.height = 1;

/** The time in milliseconds of the mark at the bottom of a picture, on the clock of performance.now(); null if unreadable. */
export function readMark(picture, width, top) {
  const context = small.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, top + MARK_ROWS / 2 - 1, width, 1, 0, 0, width, 1);
  const row = context.getImageData(0, 0, width, 1).data;
  const level = (index) => row[4 * Math.floor((index + 0.5) * width / BLOCKS) + 1];
  if (level(0) < 160 || level(1) > 96) return null;
  let value = 0;
  for (let index = 2; index < BLOCKS; index++) value = value * 2 + (level(index) > 128 ? 1 : 0);
  const time = value >> CHECK;
  if (checksum(time) !== (value & 15)) return null;
  const now = performance.now();
  return now - (((now - time) % SPAN) + SPAN) % SPAN;
}
