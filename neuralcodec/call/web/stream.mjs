// Which frames a motion packet brings, whatever was lost, doubled or changed places before it: section 13 of FORMAT.md,
// as neuralcodec/decoder.py. No browser API; knows no pictures.
import { MotionDecoder } from "./bitstream.mjs";

const REORDER = 32; // frames: motion that comes out of order within so many still finds its place
const FORGET = 128; // frames missing after which the 8-bit numbers may have gone round
const FEWER_MAX = 3; // datagrams in a row that can repeat fewer frames because one was lost before each of them
const RUN_MAX = 3; // datagrams lost in a row; a longer run is an interruption, which nothing sent in advance makes up for
const round = (number) => (number % 256 + 256) % 256;

/** Which share of frames lost the datagram that was to bring them first: LossMeter of neuralcodec/protection.py. */
class LossMeter {
  constructor() {
    this.usual = 0; // frames sent again in each datagram
    this.fewer = []; // in the latest ones, where not so many
    this.frames = this.lost = 0; // since the last report
  }

  add(frames, steps, intra) {
    if (!steps) return;
    if (intra) [this.usual, this.fewer] = [0, []]; // repeats nothing before it
    const own = Math.max(1, frames - this.usual);
    if (steps > (RUN_MAX + 1) * own) {
      this.frames += own;
      return;
    }
    this.frames += steps;
    this.lost += Math.max(0, steps - frames);
    const known = Math.max(0, frames - steps);
    if (known >= this.usual) {
      for (const fewer of this.fewer) this.lost += this.usual - fewer;
      [this.usual, this.fewer] = [known, []];
    } else if (this.fewer.push(known) > FEWER_MAX) [this.usual, this.fewer] = [Math.max(...this.fewer), []];
  }

  share() {
    const share = this.frames ? Math.min(1, this.lost / this.frames) : 0;
    this.frames = this.lost = 0;
    return share;
  }
}

export class MotionStream {
  constructor(tables) {
    this.decoder = new MotionDecoder(tables);
    this.sequence = null; // newest frame seen
    this.pts = 0;
    this.asIs = false; // it shows the picture itself
    this.light = 0; // on it, see light.mjs
    this.lightAgo = 256; // frames from the one that it was told of last to the newest
    this.reference = null; // id of the picture that it is relative to
    this.broken = true; // it could not be followed: an intra frame is wanted
    this.namedAgo = 0; // frames from the one that named the picture to the newest
    this.followed = null; // newest frame whose motion is known exactly
    this.missing = 0; // frames since then
    this.losses = new LossMeter();
    this.came = this.steps = 0; // motion frames in this datagram, and how far they lead
    this.began = false; // one of them is intra
    this.past = new Map(); // by number: { state, pts } of such frames
    this.ahead = new Map(); // by number: packets that came before the frames they continue
  }

  /** The frames of a motion packet that are new, oldest first: { pts, flat }, flat null where the picture itself is shown
   *  and its motion is not known. duration: of a frame, as the header says. Throws BitstreamError for a bad payload. */
  take(packet, duration) {
    this.came += packet.frames;
    const end = round(packet.sequence + packet.frames - 1);
    let steps = this.sequence === null ? packet.frames : round(end - this.sequence);
    if (this.sequence !== null && (steps === 0 || steps >= 192)) {
      if (packet.pts !== undefined && packet.pts > this.pts) steps ||= 256; // after a long silence
      else if (this.followed === null || this.isAfter(end)) steps = 0; // its time has passed, but it may fill a gap
      else return []; // a double, or older than what is known
    }
    const fresh = Math.min(steps, packet.frames);
    let known = this.past.get(round(packet.sequence - 1));
    const guess = this.pts + (steps - packet.frames) * duration + (packet.step ?? duration);
    const first = packet.pts ?? (known ? known.pts + (packet.step ?? duration) : guess);
    if (steps) {
      this.sequence = end;
      this.pts = first + (packet.frames - 1) * duration;
      this.namedAgo += steps;
      this.asIs = packet.asIs === true;
      this.lightAgo += steps;
      this.missing += steps;
      this.steps += steps;
      this.began ||= packet.intra === true;
      if (this.missing - fresh >= FORGET) this.forget();
    }
    const late = round(this.sequence - end);
    if (packet.light !== undefined && late <= this.lightAgo) [this.light, this.lightAgo] = [packet.light, late];
    this.broken = true; // until the payload has proved good
    if (packet.reference !== undefined) {
      const ago = round(this.sequence - packet.sequence);
      if (ago <= this.namedAgo || this.reference === null) [this.reference, this.namedAgo] = [packet.reference, ago];
    }
    if (packet.intra) known = { state: null, pts: first };
    if (!known) {
      this.ahead.set(packet.sequence, packet);
      while (this.ahead.size > REORDER) this.ahead.delete(this.ahead.keys().next().value);
      return packet.asIs ? Array.from({ length: fresh }, (_, i) => ({ pts: first + (packet.frames - fresh + i) * duration, flat: null })) : [];
    }
    const frames = this.follow(packet, known.state, first, duration);
    if (packet.intra) { // nothing older is of use, and after a long silence its numbers would mislead
      const last = this.past.get(end);
      this.past.clear();
      this.past.set(end, last);
      // it continues nothing any more, but would seem to when its number comes again
      for (const number of [...this.ahead.keys()]) if (steps || round(number - end - 1) >= 127) this.ahead.delete(number);
    }
    this.catchUp(duration);
    this.broken = this.followed !== this.sequence;
    if (!this.broken) this.missing = 0;
    if (!steps && !this.broken) this.pts = this.past.get(this.followed).pts; // the gap was filled: go on from what is known
    return frames.slice(packet.frames - fresh);
  }

  /** All motion of a datagram has been taken. */
  counted() {
    this.losses.add(this.came, this.steps, this.began);
    this.came = this.steps = 0;
    this.began = false;
  }

  /** A feedback packet (3.9): what is missing, what came, and the ids of the pictures held. early: the last packet of
   * motion that waits for the header. */
  report(held, lacks, early) {
    const flags = (lacks ? 1 : 0) | (this.broken ? 2 : 0);
    const newest = this.sequence ?? (early ? round(early.sequence + early.frames - 1) : null);
    if (newest === null) return Uint8Array.of(8, flags);
    return Uint8Array.of(8, flags | 4, newest, Math.min(255, Math.round(256 * this.losses.share())), ...[...held].sort((a, b) => a - b));
  }

  isAfter(number) {
    const ahead = round(number - this.followed);
    return ahead > 0 && ahead < 128;
  }

  follow(packet, state, first, duration) {
    return this.decoder.decode(packet, state).map(({ flat, state }, i) => {
      const pts = first + i * duration;
      this.followed = round(packet.sequence + i);
      this.past.delete(this.followed);
      this.past.set(this.followed, { state, pts });
      while (this.past.size > REORDER) this.past.delete(this.past.keys().next().value);
      return { pts, flat };
    });
  }

  /** Follow the packets that were ahead of a gap which has been filled. */
  catchUp(duration) {
    const next = () => [...this.ahead.values()].find((packet) => this.past.has(round(packet.sequence - 1)));
    for (let packet = next(); packet; packet = next()) { // one at a time: each can push out the frame that another continues
      this.ahead.delete(packet.sequence);
      const { state, pts } = this.past.get(round(packet.sequence - 1)), end = round(packet.sequence + packet.frames - 1);
      if (this.past.has(end) || !this.isAfter(end)) continue;
      try { this.follow(packet, state, pts + (packet.step ?? duration), duration); } catch { /* damaged: an intra frame is asked for */ }
    }
  }

  forget() {
    this.past.clear();
    this.ahead.clear();
    this.followed = null;
  }
}
