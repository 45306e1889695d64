// Coded reference pictures to pixels: AV1 stills through WebCodecs, colours in the integers of neuralcodec/reference.py,
// so that both ends see the same picture (FORMAT.md section 7).

/** RGBA pixels, Uint8ClampedArray of 4 * size * size, of a coded reference. Rejects on damaged data. */
export async function decodeReference(data, size) {
  if (data.length < 2 || data[0] & 0x80) throw new Error("a reference that this page cannot read");
  const stream = concat([new Uint8Array([0x12, 0]), obu(1, sequenceHeader(size, data[0])), obu(6, data.subarray(1))]);
  let picture = null, problem = null;
  const decoder = new VideoDecoder({ output: (frame) => { picture?.close(); picture = frame; }, error: (error) => { problem = error; } });
  decoder.configure({ codec: "av01.0.04M.08", codedWidth: size, codedHeight: size, hardwareAcceleration: "prefer-software", optimizeForLatency: true });
  decoder.decode(new EncodedVideoChunk({ type: "key", timestamp: 0, data: stream }));
  await decoder.flush().catch((error) => { problem ??= error; });
  if (decoder.state !== "closed") decoder.close();
  if (problem || !picture) throw problem ?? new Error("the AV1 decoder gave no picture");
  if (picture.format !== "I420" || picture.codedWidth < size) throw new Error(`the AV1 decoder gave ${picture.format}, expected I420`);
  const layout = [{ offset: 0, stride: size }, { offset: size * size, stride: size / 2 }, { offset: size * size * 5 / 4, stride: size / 2 }];
  const planes = new Uint8Array(size * size * 3 / 2);
  await picture.copyTo(planes, { rect: { x: 0, y: 0, width: size, height: size }, layout });
  picture.close();
  return rgba(planes, size);
}

/** Full-range BT.601 from planes Y, Cb, Cr (4:2:0, centred chroma) in exact integers. */
export function rgba(planes, size) {
  const out = new Uint8ClampedArray(4 * size * size), half = size / 2;
  const cb = twice(planes.subarray(size * size), half), cr = twice(planes.subarray(size * size + half * half), half);
  // 2^20 parts; sums reach 2^29, which doubles hold exactly
  const whole = (value) => Math.max(0, Math.min(255, Math.floor((value + 524288) / 1048576)));
  for (let i = 0; i < size * size; i++) {
    const y = planes[i] * 1048576;
    out[4 * i] = whole(y + 91881 * cr[i]);
    out[4 * i + 1] = whole(y - 22554 * cb[i] - 46802 * cr[i]);
    out[4 * i + 2] = whole(y + 116130 * cb[i]);
    out[4 * i + 3] = 255;
  }
  return out;
}

/** Chroma minus 128 at double size, times 16: bilinear between the block centres. */
function twice(plane, half) {
  const out = new Int32Array(4 * half * half), size = 2 * half;
  const at = (y, x) => plane[Math.max(0, Math.min(half - 1, y)) * half + Math.max(0, Math.min(half - 1, x))] - 128;
  for (let y = 0; y < size; y++) {
    const near = y >> 1, far = y % 2 ? near + 1 : near - 1;
    for (let x = 0; x < size; x++) {
      const here = x >> 1, there = x % 2 ? here + 1 : here - 1;
      out[y * size + x] = 3 * (3 * at(near, here) + at(far, here)) + 3 * at(near, there) + at(far, there);
    }
  }
  return out;
}

/** AV1 sequence header (AV1 5.5) of one reduced still picture: 8 bit, 4:2:0, square; flags as in FORMAT.md section 7. */
export function sequenceHeader(size, flags) {
  const flag = (index) => String(flags >> index & 1), binary = (value, width) => value.toString(2).padStart(width, "0");
  const width = Math.max(1, 32 - Math.clz32(size - 1));
  let bits = "000" + "11" + "11111" + binary(width - 1, 4).repeat(2) + binary(size - 1, width).repeat(2);
  for (let index = 0; index < 6; index++) bits += flag(index);
  bits += "000000" + flag(6) + "0" + "1";
  bits += "0".repeat((8 - bits.length % 8) % 8);
  return Uint8Array.from(bits.match(/.{8}/g), (byte) => parseInt(byte, 2));
}

function obu(kind, payload) {
  const head = [kind << 3 | 2];
  let rest = payload.length;
  while (rest > 127) { head.push(rest & 127 | 128); rest >>= 7; }
  return concat([new Uint8Array([...head, rest]), payload]);
}

export function concat(pieces) {
  const out = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) { out.set(piece, at); at += piece.length; }
  return out;
}
