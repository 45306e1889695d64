// Coded reference pictures to pixels: AV1 through WebCodecs, colours in the integers of neuralcodec/reference.py,
// so that both ends see the same picture (FORMAT.md section 7).

import { bounds, RangeDecoder } from "./bitstream.mjs";

const WAIT = 3000; // ms for one picture

const decoding = (size) => ({ codec: "av01.0.04M.08", codedWidth: size, codedHeight: size, hardwareAcceleration: "prefer-software", optimizeForLatency: true });

/** Whether this browser decodes AV1: one that does not gives no error before the first picture. */
export const canDecode = async (size) => (await VideoDecoder.isConfigSupported(decoding(size))).supported;

/** One coded picture after another, a still or a chain, to planes for `rgba`: most pictures of a chain are never shown. */
class Pictures {
  constructor(size) {
    this.size = size;
    this.decoder = new VideoDecoder({ output: (frame) => this.settle(null, frame), error: (error) => this.settle(error) });
    this.decoder.configure(decoding(size));
    this.time = 0;
  }
  settle(error, frame) {
    clearTimeout(this.timer);
    if (this.waiting) error ? this.waiting.reject(error) : this.waiting.resolve(frame); else frame?.close();
    this.waiting = null;
  }
  async decode(type, units) {
    const data = concat([new Uint8Array([0x12, 0]), ...units]);
    const frame = await new Promise((resolve, reject) => {
      this.waiting = { resolve, reject };
      this.timer = setTimeout(() => this.settle(new Error("the AV1 decoder gave no picture")), WAIT); // a frame after that is closed
      this.decoder.decode(new EncodedVideoChunk({ type, timestamp: this.time++, data }));
    });
    try {
      if (frame.format !== "I420" || frame.codedWidth < this.size) throw new Error(`the AV1 decoder gave ${frame.format}, expected I420`);
      const { size } = this, planes = new Uint8Array(size * size * 3 / 2);
      const layout = [{ offset: 0, stride: size }, { offset: size * size, stride: size / 2 }, { offset: size * size * 5 / 4, stride: size / 2 }];
      await frame.copyTo(planes, { rect: { x: 0, y: 0, width: size, height: size }, layout });
      return planes;
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

/** A chain of pictures (section 7.1): a key, codec 3, then updates. ``digest`` names the last one; null before a key.
 *  table: frame_header.json. */
export class Chain {
  constructor(size, table) { this.size = size; this.table = table; this.digest = null; }
  async key(data, digest) {
    if (data.length < 3 || data[0] & 0xc0) throw new Error("a reference that this page cannot read");
    this.close();
    this.pictures = new Pictures(this.size);
    const flags = (data[0] & 0x1f) << 8 | data[1];
    this.headers = data[0] & 0x20 ? new FrameHeaders(this.table, this.size, flags) : null;
    const planes = await this.pictures.decode("key", [obu(1, chainHeader(this.size, flags)), obu(6, data.subarray(2))]);
    this.digest = digest;
    return planes;
  }
  /** Rejects, and ends the chain, on damaged data. */
  async update(data, digest) {
    this.digest = null;
    const frame = this.headers ? this.headers.restore(data) : data;
    const planes = await this.pictures.decode("delta", [obu(6, frame)]);
    this.digest = digest;
    return planes;
  }
  close() { this.pictures?.close(); this.digest = null; }
}

const OTHER = 2, PLAIN = 3, AS_OLDER = 0, AS_LAST = 1;
const LIKE = { level_1: "level_0", level_v: "level_u" };

/** The frame headers of a chain's updates (section 7.2), as neuralcodec/frame_header.py codes them. */
export class FrameHeaders {
  constructor(table, size, flags) {
    this.fronts = table.fronts.map((list) => list.map((front) => BigInt(`0x${front}`)));
    this.kinds = limits(table.kinds);
    this.size = size;
    this.flags = Array.from({ length: 13 }, (_, i) => flags >> 12 - i & 1);
    this.rows = limits(table.fields[this.flags[4]]);
    [this.number, this.kind, this.older, this.last] = [1, PLAIN, {}, {}];
  }
  /** The payload of an update's frame OBU. Throws on bytes that no encoder writes. */
  restore(data) {
    const coder = new RangeDecoder(data), fields = {};
    let header = 0n, at = 0;
    const put = (value, bits) => { header = header << BigInt(bits) | BigInt(value); at += bits; };
    const kind = coder.symbol(this.kinds[this.kind]);
    if (kind === OTHER) for (let i = 0; i < 6; i++) put(coder.raw(8), 8);
    if (kind < OTHER) put(this.front(kind), 48);
    if (kind !== PLAIN) {
      const code = (name, bits) => {
        const older = this.older[name] ?? 0, last = name in LIKE ? fields[LIKE[name]] : this.last[name] ?? 0;
        fields[name] = field(coder, this.rows[name], bits, older, last);
        put(fields[name], bits);
        return fields[name];
      };
      const complete = walk(code, this.size, this.flags);
      while (at % 8) put(complete ? field(coder, this.rows.zero, 1, 0, 0) : coder.raw(1), 1);
    }
    const rest = data.subarray(coder.length());
    const start = Array.from({ length: at / 8 }, (_, i) => Number(header >> BigInt(at - 8 - 8 * i) & 255n));
    [this.older, this.last, this.kind] = [this.last, fields, kind];
    this.number++;
    return concat([Uint8Array.from(start), rest]);
  }
  front(kind) {
    const place = this.number <= 12 ? this.number : 13 + (this.number - 13) % 12;
    return this.fronts[kind][place - 1] | BigInt(this.number & 127) << 33n;
  }
}

const limits = (rows) => Array.isArray(rows) ? Array.isArray(rows[0]) ? rows.map(limits) : bounds(rows)
  : Object.fromEntries(Object.entries(rows).map(([name, value]) => [name, limits(value)]));

function field(coder, rows, bits, older, last) {
  if (bits <= 2) return coder.symbol(rows.value[older << bits | last]);
  const how = coder.symbol(rows.how[Number(older === last)]);
  return how === AS_OLDER ? older : how === AS_LAST ? last : coder.symbol(rows.value);
}

/** The fields of an inter frame's header behind its first 48 bits (AV1 5.9.2); whether they came to its end. */
function walk(code, size, flags) {
  const [large] = flags, [warped, vectors, superres, cdef, restoration, separate] = [5, 8, 9, 10, 11, 12].map((i) => flags[i]);
  const any = (names) => names.some((name) => code(name, 1)); // stops at the first that is set
  if (superres || code("render_and_frame_size_different", 1)) return false;
  code("allow_high_precision_mv", 1);
  if (!code("is_filter_switchable", 1)) code("interpolation_filter", 2);
  code("is_motion_mode_switchable", 1);
  if (vectors) code("use_ref_frame_mvs", 1);
  code("disable_frame_end_update_cdf", 1);
  if (!code("uniform_tile_spacing_flag", 1)) return false;
  if (size > (large ? 128 : 64) && any(["increment_tile_cols_log2", "increment_tile_rows_log2"])) return false;
  if (!code("base_q_idx", 8) || code("delta_coded_y", 1)) return false;
  const different = separate && code("diff_uv_delta", 1);
  if (any(Array(different ? 4 : 2).fill("delta_coded_uv"))) return false;
  if (any(["using_qmatrix", "segmentation_enabled", "delta_q_present"])) return false;
  if (code("level_0", 6) | code("level_1", 6)) { code("level_u", 6); code("level_v", 6); }
  code("sharpness_level", 3);
  if (any(["loop_filter_delta_enabled"]) && any(["loop_filter_delta_update"])) return false;
  if (cdef) {
    code("cdef_damping", 2);
    const count = 1 << code("cdef_bits", 2);
    for (let i = 0; i < count; i++) {
      const which = i ? "more" : "first";
      for (const plane of ["y", "uv"]) { code(`cdef_${plane}_pri_${which}`, 4); code(`cdef_${plane}_sec_${which}`, 2); }
    }
  }
  if (restoration) {
    const luma = code("lr_type_y", 2), chroma = code("lr_type_u", 2) | code("lr_type_v", 2);
    if (luma || chroma) {
      if (code("lr_unit_shift", 1) && !large) code("lr_unit_extra_shift", 1);
      if (chroma) code("lr_uv_shift", 1);
    }
  }
  code("tx_mode_select", 1);
  if (code("reference_select", 1)) code("skip_mode_present", 1);
  if (warped) code("allow_warped_motion", 1);
  code("reduced_tx_set", 1);
  return !any([1, 2, 3, 4, 5, 6, 7].map((i) => `is_global_${i}`));
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
