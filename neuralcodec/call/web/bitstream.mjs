// The bitstream of FORMAT.md in JavaScript: packets, range decoder, quantizer loop, motion. No browser API, so that node
// runs it too: tests/test_call_bitstream_js.py holds it against Python and the frozen vectors. Section numbers are FORMAT.md's.

export const POSE = 7;
const SMALL = 4, DOUBLINGS = 14, NEAR = 12, NEAR_CAP = 4, VALUE_LIMIT = 131072;
const STARTS = [...Array(SMALL).keys()].map((i) => i + 1).concat([...Array(DOUBLINGS).keys()].map((i) => 3 + 2 ** (i + 1)));

export class BitstreamError extends Error {}

// --- packets (sections 3 and 4) -----------------------------------------------------------------------------------

class Reader {
  constructor(data) { this.data = data; this.at = 1; }
  byte() {
    if (this.at >= this.data.length) throw new BitstreamError("R3: the packet is cut");
    return this.data[this.at++];
  }
  bytes(count) {
    if (this.at + count > this.data.length) throw new BitstreamError("R3: the packet is cut");
    return this.data.slice(this.at, this.at += count);
  }
  rest() { return this.data.slice(this.at); }
  payload() {
    if (this.at >= this.data.length) throw new BitstreamError("R17: the payload is empty");
    return this.rest();
  }
  whole() { // a varint as a BigInt, 63 bits at most
    let value = 0n, shift = 0n;
    for (let i = 0; i < 9; i++, shift += 7n) {
      const byte = this.byte();
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) {
        if (!byte && i) break;
        return value;
      }
    }
    throw new BitstreamError("R4: a varint is too long or not minimal");
  }
  varint() { return Number(this.whole()); }
  limited(low, high, rule) {
    const value = this.varint();
    if (!(value >= low && value <= high)) throw new BitstreamError(`${rule}: ${value} is not within ${low} to ${high}`);
    return value;
  }
  signed(high, rule) {
    const raw = this.whole(), value = raw & 1n ? ~(raw >> 1n) : raw >> 1n;
    if (value > high || value < -high) throw new BitstreamError(`${rule}: ${value} is out of range`);
    return Number(value);
  }
  fragment() {
    const index = this.byte(), count = this.byte();
    if (count < 1 || count > 64 || index >= count) throw new BitstreamError("R11: a fragment that does not exist");
    return { index, count };
  }
  codec() { // bit 7: signed
    const codec = this.byte();
    if (!(codec & 127)) throw new BitstreamError("R12: codec 0");
    return codec;
  }
  crop() { return [this.signed(8192, "R13"), this.signed(8192, "R13"), this.limited(1, 16384, "R13")]; }
  motion(frames) {
    const payload = this.rest();
    if (payload.length > 512 * frames) throw new BitstreamError("R18: a motion payload is too long");
    if (payload.length && !payload.at(-1)) throw new BitstreamError("R20: a motion payload ends with a zero byte");
    return payload;
  }
  end() { if (this.at < this.data.length) throw new BitstreamError("R5: bytes follow the last field"); }
}

const TIME_MAX = 2 ** 31 - 1, PTS_MAX = 2n ** 62n - 1n;

/** One packet from the bytes of one datagram: { kind, ...fields }. Throws BitstreamError for bytes that are none. */
export function parsePacket(data) {
  if (!data.length || data.length > 1 << 20) throw new BitstreamError("R1: a packet has 1 to 1048576 bytes");
  const first = data[0], read = new Reader(data);
  if (first >= 0x80) return predicted(first, read);
  if (first >= 0x40) {
    const sequence = read.byte(), reference = read.byte(), pts = read.signed(PTS_MAX, "R4");
    return { kind: "motion", intra: true, level: first >> 3 & 7, components: first & 7, sequence, reference, pts, frames: 1, payload: read.motion(1) };
  }
  if (first >= 0x20) return { kind: "extension" };
  if (first === 0x01) return header(read);
  if (first === 0x02) {
    const id = read.byte(), part = read.fragment(), codec = read.codec(), hash = hex(read.bytes(4));
    return { kind: "reference", id, ...part, codec, hash, crop: read.crop(), payload: read.payload() };
  }
  if (first === 0x04) {
    const frames = read.varint();
    read.end();
    return { kind: "end", frames };
  }
  if (first === 0x05) {
    const id = read.byte(), part = read.byte(), index = part & 7, count = (part >> 3 & 7) + 1;
    if (index >= count) throw new BitstreamError("R11: a fragment that does not exist");
    const hash = hex(read.bytes(4)), crop = part & 0x40 ? read.crop() : null;
    return { kind: "update", id, index, count, hash, crop, signed: (part & 0x80) !== 0, payload: read.payload() };
  }
  if (first === 0x06) return bundle(read);
  if (first === 0x07) return parity(read);
  if (first === 0x08) return feedback(read);
  throw new BitstreamError(`R2: packet kind ${first} does not exist`);
}

function header(read) {
  if (String.fromCharCode(...read.bytes(3)) !== "NCV") throw new BitstreamError("R6: not a neuralcodec stream");
  if (read.byte() !== 1) throw new BitstreamError("R6: a version this page does not read");
  const pack = hex(read.bytes(8)), flags = read.byte();
  if (flags & ~3) throw new BitstreamError("R10: reserved flags");
  const width = read.limited(1, 8192, "R7"), height = read.limited(1, 8192, "R7");
  const timeBase = [read.limited(1, TIME_MAX, "R8"), read.limited(1, TIME_MAX, "R8")];
  const duration = read.limited(1, TIME_MAX, "R8"), size = read.limited(64, 1024, "R9");
  if (size % 16) throw new BitstreamError("R9: the coded size is no multiple of 16");
  read.end();
  return { kind: "header", pack, width, height, timeBase, duration, size, fullFrame: (flags & 1) === 1, gray: (flags & 2) === 2 };
}

function bundle(read) {
  const packets = [];
  let frames = 0;
  while (read.at < read.data.length) {
    if (packets.length === 16) throw new BitstreamError("R25: a bundle of more than 16 packets");
    const data = read.bytes(read.limited(1, 1 << 20, "R1"));
    if (data[0] === 0x06) throw new BitstreamError("R25: a bundle inside a bundle");
    packets.push(parsePacket(data));
    if (packets.at(-1).kind === "motion") frames += packets.at(-1).frames;
    if (frames > 64) throw new BitstreamError("R25: more than 64 frames in a bundle");
  }
  if (packets.length < 2) throw new BitstreamError("R25: a bundle of fewer than 2 packets");
  return { kind: "bundle", packets };
}

function parity(read) { // this page does without: a picture that lost a fragment is asked for again
  const id = read.byte(), { index, count: groups } = read.fragment(), count = read.byte();
  if (count < groups || count > 64) throw new BitstreamError("R11: parities of too few or too many fragments");
  const codec = read.codec(), hash = hex(read.bytes(4)), crop = read.crop(), length = read.limited(count, 1 << 20, "R26");
  const payload = read.payload();
  if (payload.length !== Math.ceil(length / count) || (count - 1) * payload.length >= length) throw new BitstreamError("R26: a parity of the wrong length");
  return { kind: "parity", id, index, groups, count, codec, hash, crop, length, payload };
}

function feedback(read) {
  const flags = read.byte();
  if (flags > 7) throw new BitstreamError("R10: reserved flags");
  if (!(flags & 4)) {
    read.end();
    return { kind: "feedback", flags };
  }
  const sequence = read.byte(), lost = read.byte(), held = Array.from(read.rest());
  if (held.length > 8 || held.some((id, i) => i && held[i - 1] >= id)) throw new BitstreamError("R27: held references that do not rise");
  return { kind: "feedback", flags, sequence, lost, held };
}

function predicted(first, read) {
  const packet = { kind: "motion", intra: false, level: first >> 4 & 7, components: first >> 1 & 7, sequence: read.byte(), frames: 1 };
  if (first & 1) {
    const flags = read.byte();
    if (flags < 1 || flags > 31) throw new BitstreamError("R14: motion flags");
    if (flags & 1) packet.reference = read.byte();
    if (flags & 2) packet.step = read.limited(1, TIME_MAX, "R15");
    if (flags & 4) packet.frames = read.limited(2, 64, "R16");
    packet.asIs = (flags & 8) === 8;
    if (flags & 16) packet.light = read.byte() << 24 >> 24;
  }
  packet.payload = read.motion(packet.frames);
  return packet;
}

export const hex = (bytes) => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");

// --- motion (sections 5 and 6) ------------------------------------------------------------------------------------

/** Bounds of section 6.3 of a frequency row, out of 2^24. */
export function bounds(row) {
  const out = [];
  let below = 0;
  row.forEach((share, symbol) => { out.push(Math.floor(below * (2 ** 24 - row.length) / 2 ** 15) + symbol); below += share; });
  out.push(2 ** 24);
  return out;
}

export class RangeDecoder {
  constructor(payload) {
    this.payload = payload;
    this.at = 0;
    this.value = this.word() << 32n | this.word();
    this.range = (1n << 64n) - 1n;
  }
  word() { // bytes past the end are zeros
    let word = 0;
    for (let i = 0; i < 4; i++) word = word * 256 + (this.payload[this.at++] ?? 0);
    return BigInt(word);
  }
  point() { // where the code lies, out of 2^24
    const scale = this.range >> 24n, x = this.value / scale;
    if (x >= 1n << 24n) throw new BitstreamError("R19: the payload is no code word");
    return Number(x);
  }
  take(low, high) {
    const scale = this.range >> 24n;
    this.value -= scale * BigInt(low);
    this.range = scale * BigInt(high - low);
    if (this.range < 1n << 32n) {
      this.range <<= 32n;
      this.value = this.value << 32n | this.word();
    }
  }
  symbol(limits) {
    const x = this.point();
    let low = 0, high = limits.length - 1;
    while (high - low > 1) { const middle = low + high >> 1; if (limits[middle] <= x) low = middle; else high = middle; }
    this.take(limits[low], limits[low + 1]);
    return low;
  }
  raw(bits) {
    const value = this.point() >> 24 - bits;
    this.take(value << 24 - bits, value + 1 << 24 - bits);
    return value;
  }
  /** How many bytes an encoder has sent for the symbols up to here, when others follow them. */
  length() {
    const bits = 8 * this.at;
    let read = 0n;
    for (let i = 0; i < this.at; i++) read = read << 8n | BigInt(this.payload[i] ?? 0);
    const low = read - this.value;
    for (let count = 0; ; count++) {
      const drop = BigInt(bits - 8 * count), top = (low + (1n << drop) - 1n) >> drop;
      if ((top + 1n << drop) > low + this.range) continue;
      if (top !== read >> drop || count > this.payload.length) throw new BitstreamError("the code does not end as codes do");
      return count;
    }
  }
}

/** A closed loop over a pack's tables.json. decode() gives, for each frame of a packet, its flat motion. */
export class MotionDecoder {
  constructor(tables) {
    this.tables = tables;
    this.limits = tables.bank.map(bounds);
    this.size = tables.synthesis.length;
    this.scene = new Set(tables.scene_components ?? []);
    this.sceneAt = POSE + 3 * tables.keypoints; // where it begins in a flat motion
    this.reset();
  }
  reset() {
    this.values = new Array(this.size).fill(0);
    this.older = new Array(this.size).fill(0);
    this.activity = new Array(this.size).fill(0);
  }
  newReference() { // nothing has moved yet since the picture that is named
    const still = (value, i) => this.scene.has(i) ? 0 : value;
    [this.values, this.older] = [this.values.map(still), this.older.map(still)];
  }
  /** Frames of a motion packet, oldest first: { symbols, flat, state after it }. Goes on from ``from``, a state given
   *  earlier, or from where the last packet left it. Throws BitstreamError, and then keeps its state. */
  decode(packet, from = null) {
    const kept = [this.values, this.older, this.activity];
    if (from) [this.values, this.older, this.activity] = from;
    if (packet.intra) this.reset();
    else if (packet.reference !== undefined) this.newReference();
    try {
      const coder = new RangeDecoder(packet.payload), frames = [];
      for (let i = 0; i < packet.frames; i++) {
        const intra = packet.intra && i === 0, symbols = this.symbols(coder, packet, intra);
        this.advance(symbols, packet.level, intra);
        frames.push({ symbols, flat: this.flat(), state: [this.values, this.older, this.activity] });
      }
      return frames;
    } catch (error) {
      [this.values, this.older, this.activity] = kept;
      throw error;
    }
  }
  symbols(coder, { level, components }, intra) {
    const t = this.tables, step = t.levels[level], count = POSE + t.components[components], symbols = [];
    for (let i = 0; i < count; i++) {
      let row = t.intra[level][i];
      if (!intra) {
        const own = t.own_thresholds.filter((limit) => limit * step <= this.activity[i]).length;
        let sum = 0;
        for (let j = Math.max(0, i - NEAR); j < i; j++) sum += Math.min(Math.abs(symbols[j]), NEAR_CAP);
        const near = t.near_thresholds.filter((limit) => limit <= sum).length;
        row = t.predicted[level][i][own * (t.near_thresholds.length + 1) + near];
      }
      const bucket = coder.symbol(this.limits[row]);
      if (!bucket) { symbols.push(0); continue; }
      const magnitude = bucket - 1 >> 1;
      const size = STARTS[magnitude] + (magnitude >= SMALL ? coder.raw(magnitude - SMALL + 1) : 0);
      symbols.push(bucket % 2 ? size : -size);
    }
    return symbols;
  }
  advance(symbols, level, intra) {
    const t = this.tables, step = t.levels[level], clip = (v) => Math.max(-VALUE_LIMIT, Math.min(VALUE_LIMIT, v));
    if (intra) {
      this.values = this.values.map((_, i) => i < symbols.length ? clip(symbols[i] * step) : 0);
      this.older = [...this.values];
      this.activity = this.values.map(() => 8 * step);
      return;
    }
    const values = [...this.values], older = [...this.older], activity = [...this.activity];
    for (let i = 0; i < this.size; i++) {
      const now = this.values[i];
      if (i < symbols.length) {
        values[i] = clip(now + (t.momentum[level][i] * (now - this.older[i]) + 32 >> 6) + symbols[i] * step);
        older[i] = now;
        activity[i] += Math.min(Math.abs(symbols[i]), 15) * 16 * step - activity[i] >> 2;
      } else {
        values[i] = now - (now + 4 >> 3);
        older[i] = values[i];
      }
    }
    [this.values, this.older, this.activity] = [values, older, activity];
  }
  flat() {
    const t = this.tables, flat = Float64Array.from(t.mean);
    this.values.forEach((value, i) => { if (value) t.synthesis[i].forEach((weight, j) => { flat[j] += value * weight; }); });
    return flat;
  }
}

// --- geometry (neuralcodec/motion.py) -----------------------------------------------------------------------------

/** Row-vector rotation, 9 numbers row by row, from degrees: yaw about y, then pitch about x, then roll about z. */
export function rotation(yaw, pitch, roll) {
  const [y, p, r] = [yaw, pitch, roll].map((angle) => angle * Math.PI / 180);
  const [cy, sy, cp, sp, cr, sr] = [Math.cos(y), Math.sin(y), Math.cos(p), Math.sin(p), Math.cos(r), Math.sin(r)];
  return product(product([cy, 0, sy, 0, 1, 0, -sy, 0, cy], [1, 0, 0, 0, cp, sp, 0, -sp, cp]), [cr, sr, 0, -sr, cr, 0, 0, 0, 1]);
}

function product(a, b) {
  const out = new Array(9);
  for (let i = 0; i < 3; i++) for (let j = 0; j < 3; j++) out[3 * i + j] = a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j];
  return out;
}

/** A flat motion of keypoints of ``length`` numbers: its rotation (9 numbers), translation, scale, delta, and scene (x, y
 *  of each node, none for packs without). */
export function unpacked(flat, length) {
  return {
    rotation: rotation(flat[0], flat[1], flat[2]), translation: flat.subarray(3, 6), scale: Math.exp(Math.max(-3, Math.min(3, flat[6]))),
    delta: flat.subarray(POSE, POSE + length), scene: flat.subarray(POSE + length),
  };
}

/** What the renderer wants of an unpacked motion: { rotation, keypoints, scene } as Float32Array. The head is turned by a
 *  view in degrees about ``neck``, a point in its own frame; the scene stays. */
export function posed(motion, canonical, view = { yaw: 0, pitch: 0, roll: 0 }, neck = [0, 0, 0]) {
  const { rotation: coded, scale } = motion, turn = product(coded, rotation(view.yaw, view.pitch, view.roll)), translation = [...motion.translation];
  for (let j = 0; j < 2; j++) for (let i = 0; i < 3; i++) translation[j] += scale * neck[i] * (coded[3 * i + j] - turn[3 * i + j]);
  const keypoints = place(canonical, motion.delta, turn, scale, translation);
  return { rotation: Float32Array.from(turn), keypoints, scene: Float32Array.from(motion.scene) };
}

/** scale * (canonical + delta) @ rotation + translation, for K points of 3. */
export function place(canonical, delta, turn, scale, translation) {
  const out = new Float32Array(canonical.length);
  for (let k = 0; k < canonical.length; k += 3) {
    const x = canonical[k] + delta[k], y = canonical[k + 1] + delta[k + 1], z = canonical[k + 2] + delta[k + 2];
    for (let j = 0; j < 3; j++) out[k + j] = scale * (x * turn[j] + y * turn[3 + j] + z * turn[6 + j]) + translation[j];
  }
  return out;
}
