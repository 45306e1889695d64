// A time written into pixels, so that the latency of the very picture that is shown can be read from it. 24 blocks in a
// strip across the picture: white, black, 18 bits of time in milliseconds, 4 bits of checksum; they survive any codec.
export const MARK_ROWS = 16;
const BITS = 18, CHECK = 4, BLOCKS = 2 + BITS + CHECK;
const SPAN = 1 << BITS; // milliseconds until times repeat: four minutes

const checksum = (value) => (value ^ value >> 4 ^ value >> 8 ^ value >> 12 ^ value >> 16 ^ 0x9) & 15;

/** A line of luma, ``width`` samples. */
function markRow(width, milliseconds) {
  const time = Math.round(milliseconds) % SPAN, row = new Uint8Array(width);
  const bits = [1, 0];
  for (let i = BITS - 1; i >= 0; i--) bits.push(time >> i & 1);
  for (let i = CHECK - 1; i >= 0; i--) bits.push(checksum(time) >> i & 1);
  bits.forEach((bit, index) => row.fill(bit ? 235 : 16, Math.round(index * width / BLOCKS), Math.round((index + 1) * width / BLOCKS)));
  return row;
}

/** The pictures of a camera's track, each with the time of its capture in a strip above it. Nothing is drawn: the mark
 *  joins the camera's own samples, so that measuring costs and delays next to nothing. */
export function markedTrack(track) {
  if (!("MediaStreamTrackProcessor" in window && "MediaStreamTrackGenerator" in window)) throw new Error("Measuring needs Chrome or Chromium.");
  let offset = Infinity; // of the camera's clock from performance.now()
  const transform = async (frame, controller) => {
    offset = Math.min(offset, performance.now() - frame.timestamp / 1000);
    const { format, timestamp } = frame, width = frame.visibleRect.width & ~1, height = frame.visibleRect.height & ~1;
    if (format !== "I420" && format !== "NV12") throw new Error(`The camera gives ${format}; measuring needs I420 or NV12.`);
    const tall = height + MARK_ROWS, whole = width * tall, data = new Uint8Array(whole * 3 / 2).fill(128, whole);
    const row = markRow(width, timestamp / 1000 + offset), half = width / 2;
    for (let y = 0; y < MARK_ROWS; y++) data.set(row, y * width);
    const luma = { offset: MARK_ROWS * width, stride: width };
    const layout = format === "NV12" ? [luma, { offset: whole + MARK_ROWS / 2 * width, stride: width }]
      : [luma, ...[0, 1].map((i) => ({ offset: whole + i * whole / 4 + MARK_ROWS / 2 * half, stride: half }))];
    await frame.copyTo(data, { rect: { x: frame.visibleRect.x, y: frame.visibleRect.y, width, height }, layout });
    frame.close();
    controller.enqueue(new VideoFrame(data, { format, codedWidth: width, codedHeight: tall, timestamp }));
  };
  const marked = new MediaStreamTrackGenerator({ kind: "video" });
  new MediaStreamTrackProcessor({ track }).readable.pipeThrough(new TransformStream({ transform })).pipeTo(marked.writable).catch(() => marked.stop());
  return marked;
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
