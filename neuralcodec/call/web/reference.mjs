// Coded reference pictures to pixels: AV1 through WebCodecs, colours in the integers of neuralcodec/reference.py,
// so that both ends see the same picture (FORMAT.md section 7).

const WAIT = 3000; // ms for one picture

/** One coded picture after another to RGBA pixels, Uint8ClampedArray of 4 * size * size: a still, or a chain. */
class Pictures {
  constructor(size) {
    this.size = size;
    this.decoder = new VideoDecoder({ output: (frame) => this.settle(null, frame), error: (error) => this.settle(error) });
    this.decoder.configure({ codec: "av01.0.04M.08", codedWidth: size, codedHeight: size, hardwareAcceleration: "prefer-software", optimizeForLatency: true });
    this.time = 0;
  }
  settle(error, frame) {
    if (this.waiting) error ? this.waiting.reject(error) : this.waiting.resolve(frame); else frame?.close();
    this.waiting = null;
  }
  async decode(type, units) {
    const data = concat([new Uint8Array([0x12, 0]), ...units]);
    const frame = await new Promise((resolve, reject) => {
      this.waiting = { resolve, reject };
      setTimeout(reject, WAIT, new Error("the AV1 decoder gave no picture"));
      this.decoder.decode(new EncodedVideoChunk({ type, timestamp: this.time++, data }));
    });
    try {
      if (frame.format !== "I420" || frame.codedWidth < this.size) throw new Error(`the AV1 decoder gave ${frame.format}, expected I420`);
      const { size } = this, planes = new Uint8Array(size * size * 3 / 2);
      const layout = [{ offset: 0, stride: size }, { offset: size * size, stride: size / 2 }, { offset: size * size * 5 / 4, stride: size / 2 }];
      await frame.copyTo(planes, { rect: { x: 0, y: 0, width: size, height: size }, layout });
      return rgba(planes, size);
    } finally {
      frame.close();
    }
  }
  close() { if (this.decoder.state !== "closed") this.decoder.close(); }
}

/** Codec 1 of FORMAT.md section 7. Rejects on damaged data. */
export async function decodeStill(data, size) {
  if (data.length < 2 || data[0] & 0x80) throw new Error("a reference that this page cannot read");
  const pictures = new Pictures(size);
  return pictures.decode("key", [obu(1, sequenceHeader(size, data[0])), obu(6, data.subarray(1))]).finally(() => pictures.close());
}

/** A chain of pictures (section 7.1): a key, codec 3, then updates. ``digest`` names the last one; null before a key. */
export class Chain {
  constructor(size) { this.size = size; this.digest = null; }
  async key(data, digest) {
    if (data.length < 3 || data[0] & 0xe0) throw new Error("a reference that this page cannot read");
    this.close();
    this.pictures = new Pictures(this.size);
    const pixels = await this.pictures.decode("key", [obu(1, chainHeader(this.size, data[0] << 8 | data[1])), obu(6, data.subarray(2))]);
    this.digest = digest;
    return pixels;
  }
  /** Rejects, and ends the chain, on damaged data. */
  async update(data, digest) {
    this.digest = null;
    const pixels = await this.pictures.decode("delta", [obu(6, data)]);
    this.digest = digest;
    return pixels;
  }
  close() { this.pictures?.close(); this.digest = null; }
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

/** AV1 sequence header of a chain; flags as in FORMAT.md section 7.1, 13 bits. */
export function chainHeader(size, flags) {
  const tools = [...flags.toString(2).padStart(13, "0")], width = Math.max(1, 32 - Math.clz32(size - 1));
  const binary = (value, bits) => value.toString(2).padStart(bits, "0");
  const tail = "0xxxxxxx1xx11110xxx000000x01".replace(/x/g, () => tools.shift());
  let bits = "0".repeat(24) + "111110" + binary(width - 1, 4).repeat(2) + binary(size - 1, width).repeat(2) + tail;
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
