// A receiver with nothing installed: a worker that turns datagrams into pictures with onnxruntime-web, on a GPU where the
// browser has one (WebGPU), else in WebAssembly.
//
// In: { open: true } once (software: true takes a GPU that is none), { data: ArrayBuffer } for each datagram,
// { view: { yaw, pitch, roll } }.
// Out: { ready, by, threads }, { picture, size, pts, ms }, { feedback: hex of a packet for the sender }, { problem: sentence }.
import { BitstreamError, hex, parsePacket, posed, unpacked } from "./bitstream.mjs";
import { ClosedEyes, withEyes } from "./closed_eyes.mjs";
import { luma, relight } from "./light.mjs";
import { Loan, Networks } from "./networks.mjs";
import { canDecode, Chain, concat, decodeStill, rgba } from "./reference.mjs";
import { Steady } from "./steady.mjs";
import { MotionStream } from "./stream.mjs";

const PICTURE = 1, KEY = 3, SIGNED = 0x80, SIGNATURE = 64, HELD = 8, ARRIVING = 4, BYTES_MAX = 1 << 20;
const EARLY = 16, NAMES = 64; // packets kept that came before the header; pictures remembered, to know a late double
const JUMP = 0.15; // from one frame to the next, coded-picture units or of log scale: more is another crop, not the head
const REPORT = 200, URGENT = 50; // ms between two reports: when nothing is missing, and when something is
const RECOVERY = 1000; // ms after something was missing: pictures that come are reported at once

let networks, size, packId, neck, frameHeaders, motion, steady, header = null;
let view = { yaw: 0, pitch: 0, roll: 0 };
const held = new Map(), arriving = new Map(), early = new Map();
const unopened = [], names = []; // packets that came before the header; id and hash of keys and stills that were held
let shows = null, lacks = true, newest = null, chain = null;
let glimpsed = null; // box of the face in the picture shown last as it is, but turned
let shot = 0; // counts keys, stills and crops: what came before one shows something else
let moved = null; // the scene of the frame shown last, to be added while the picture named since then is not here
const loan = new Loan(), closedEyes = new ClosedEyes(), turns = new MessageChannel(); // the latter of the event loop: a timer's would take 4 ms
let queue = [], awake = null, reported = -1e9, lacked = -1e9, missed = false, told = "";

self.onmessage = ({ data }) => {
  if (data.open) return open(data.software).then(run).catch((error) => self.postMessage({ problem: `The receiver in the browser stopped: ${error.message}.` }));
  if (data.view) { view = data.view; if (newest) newest.fresh = true; }
  if (data.data) queue.push(new Uint8Array(data.data));
  awake?.();
};

async function open(software) {
  const pack = await (await got("/pack/pack.json")).json();
  [size, packId, neck, frameHeaders] = [pack.size, pack.id, pack.neck, pack.frame_header];
  if (!(await canDecode(size))) throw new Error("this browser has no AV1 decoder, which pictures need");
  motion = new MotionStream(await (await got("/pack/tables.json")).json());
  steady = new Steady(size);
  const [by, threads] = await onGpu(software).catch((error) => console.warn(`No GPU: ${error.message}`)) ?? await onCpu();
  self.postMessage({ ready: true, by, threads });
}

/** Null where there is no GPU: browsers then offer their own software, which is slower than WebAssembly. */
async function onGpu(software) {
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter || (!software && (adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter))) return null;
  const floats = { reference: await graph("reference", true), render: await graph("render", true) };
  const [ort, threads] = await runtime("webgpu");
  networks = await Networks.open(ort, (name) => floats[name] ?? graph(name), size, "webgpu");
  try { // what cannot run shows here
    const face = await networks.estimate(new Uint8ClampedArray(4 * size * size)), { canonical } = face;
    const usual = unpacked(Float64Array.from(motion.decoder.tables.mean), canonical.length);
    await networks.picture(await networks.features(face), face, usual, canonical, view, neck);
  } catch (error) {
    await networks.release();
    throw error;
  }
  return ["WebGPU", threads];
}

async function onCpu() {
  const [ort, threads] = await runtime("wasm");
  networks = await Networks.open(ort, graph, size);
  return ["WebAssembly", threads];
}

async function runtime(build) {
  const ort = await import(`/ort/ort.${build}.min.mjs`), { wasm } = ort.env;
  wasm.wasmPaths = "/ort/";
  wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  return [ort, wasm.numThreads];
}

const graph = async (name, float) => new Uint8Array(await (await got(`/pack/${name}.onnx${float ? "?float" : ""}`)).arrayBuffer());

async function got(address) {
  const response = await fetch(address);
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({})); // the server's own sentence
  throw new Error(error?.replace(/\.$/, "") ?? `${address} cannot be loaded (${response.status})`);
}

/** Every datagram is decoded, which costs nothing; only the newest frame is rendered, which does. */
async function run() {
  for (;;) {
    while (queue.length) {
      const data = queue.shift();
      try {
        await take(parsePacket(data));
      } catch (error) {
        if (!(error instanceof BitstreamError)) throw error;
      }
      motion.counted();
      report();
    }
    if (newest?.fresh) {
      newest.fresh = false;
      const begin = performance.now(), picture = steady.smooth(await render(newest));
      if (header.gray) greyed(picture);
      relight(picture, newest.light);
      self.postMessage({ picture, size, pts: newest.pts, ms: performance.now() - begin }, [picture.buffer]);
      await new Promise((resolve) => { turns.port1.onmessage = resolve; turns.port2.postMessage(0); }); // let messages in
    } else if (!queue.length) {
      await new Promise((resolve) => { awake = resolve; });
      awake = null;
    }
  }
}

async function take(packet) {
  if (packet.kind === "bundle") await takeEach(packet.packets);
  else if (packet.kind === "header") {
    if (packet.pack !== packId) throw new Error(`the stream needs the model pack ${packet.pack}, this page has ${packId}`);
    header = packet;
    await takeEach(unopened.splice(0));
  } else if (!header) {
    unopened.push(packet);
    if (unopened.length > EARLY) unopened.shift();
  } else if (packet.kind === "reference") await onPart(packet);
  else if (packet.kind === "update") await onUpdate(packet);
  else if (packet.kind === "motion") await onMotion(packet);
}

async function takeEach(packets) {
  for (const packet of packets) { // one that cannot be used does not cost the others
    try { await take(packet); } catch (error) { if (!(error instanceof BitstreamError)) throw error; }
  }
}

/** Tell the sender what is here and what is not, as `Reports` of neuralcodec/protection.py. */
function report() {
  const needs = !header || lacks, missing = needs || motion.broken, now = performance.now();
  const begins = missing && !missed;
  const ids = [...held.values()].map(({ id }) => id), came = String(ids) !== told;
  missed = missing;
  if (missing) lacked = now;
  if (!begins && !(came && now - lacked <= RECOVERY) && now - reported < (missing ? URGENT : REPORT)) return;
  [reported, told] = [now, String(ids)];
  self.postMessage({ feedback: hex(motion.report(ids, needs, unopened.findLast(({ kind }) => kind === "motion"))) });
}

/** The whole picture that a part completes, null until then. */
function joined(part, key) {
  const pieces = arriving.get(key) ?? arriving.set(key, new Map()).get(key);
  pieces.set(part.index, part.payload);
  if (pieces.size < part.count) {
    while (arriving.size > ARRIVING) arriving.delete(arriving.keys().next().value);
    return null;
  }
  arriving.delete(key);
  const coded = concat(Array.from({ length: part.count }, (_, index) => pieces.get(index) ?? new Uint8Array()));
  return coded.length > BYTES_MAX ? null : coded;
}

const digest = async (...pieces) => new Uint8Array(await crypto.subtle.digest("SHA-256", concat(pieces)));
const start = (whole) => hex(whole.subarray(0, 4)); // what packets carry of a digest

async function onPart(part) {
  const codec = part.codec & ~SIGNED, known = held.get(part.id % HELD);
  if ((codec !== PICTURE && codec !== KEY) || (known?.id === part.id && known.hash === part.hash)) return;
  const name = `${part.id} ${part.hash}`;
  if (!lacks && names.includes(name)) return; // late: a newer picture has its place, and its chain goes on
  giveWay(part);
  let coded = joined(part, name);
  if (!coded || start(await digest(coded)) !== part.hash) return;
  if (part.codec & SIGNED) coded = coded.subarray(SIGNATURE); // this page takes what the server sends: it checks no keys
  try {
    if (codec === KEY) { chain?.close(); chain = new Chain(size, frameHeaders); }
    const planes = codec === KEY ? await chain.key(coded, await digest(coded)) : await decodeStill(coded, size);
    shot++;
    hold(part.id, planes, part.hash);
  } catch { return; } // damaged: what is named and not here will be asked for
  names.push(name);
  if (names.length > NAMES) names.shift();
  await followUpdates();
}

/** An id that is taken by another picture shows the old one no more. */
function giveWay({ id, hash }) {
  const known = held.get(id % HELD);
  if (known?.id === id && known.hash !== hash) held.delete(id % HELD);
}

async function onUpdate(part) {
  if (held.get(part.id % HELD)?.hash === part.hash) return;
  giveWay(part);
  const coded = joined(part, part.hash);
  if (!coded) return;
  // another of the same hash may be the right one: a hash proves nothing until the chain is there
  early.set(`${part.hash} ${hex(coded)}`, { id: part.id, hash: part.hash, crop: part.crop, coded: part.signed ? coded.subarray(SIGNATURE) : coded });
  await followUpdates();
  while (early.size > HELD) early.delete(early.keys().next().value);
}

async function followUpdates() {
  for (let found = true; found && chain?.digest;) {
    found = false;
    for (const [name, { id, hash, crop, coded }] of early) {
      const next = await digest(chain.digest, coded);
      if (start(next) !== hash) continue;
      early.delete(name);
      found = true;
      if (crop) shot++;
      await chain.update(coded, next).then((planes) => hold(id, planes, hash), () => {});
      break;
    }
  }
}

function hold(id, planes, hash) {
  held.set(id % HELD, { id, hash, planes, shot });
  if (motion.reference === null || motion.reference === id) lacks = false;
  if (motion.reference === id) [shows, moved] = [held.get(id % HELD), null];
}

async function onMotion(packet) {
  const before = motion.reference;
  let frame;
  try {
    frame = motion.take(packet, header.duration).at(-1);
  } finally { // the name holds though the motion may be damaged
    if (packet.reference !== undefined) look(before);
  }
  if (!frame || !shows) return;
  if (!frame.flat) { // the picture itself, whatever the motion that was lost
    if (!lacks) newest = { flat: newest?.flat ?? Float64Array.from(motion.decoder.tables.mean), shows, pts: frame.pts, light: motion.light, asIs: true, fresh: true };
    return;
  }
  const { flat, pts } = frame;
  moved?.forEach((value, i) => { flat[motion.decoder.sceneAt + i] += value; });
  if (!lacks || await near(flat)) newest = { flat, shows, pts, light: motion.light, asIs: motion.asIs, fresh: true };
}

/** Find the picture that motion is relative to; it was cut where the scene is now, should it not be here yet. */
function look(before) {
  if (before !== motion.reference) moved = newest && !newest.asIs ? newest.flat.subarray(motion.decoder.sceneAt) : null;
  const picture = held.get(motion.reference % HELD);
  lacks = picture?.id !== motion.reference;
  if (!lacks) [shows, moved] = [picture, null];
}

/** RGBA without colour, in place. */
function greyed(picture) {
  for (let i = 0; i < picture.length; i += 4) picture.fill(luma(picture, i), i, i + 3);
}

const straight = () => !view.yaw && !view.pitch && !view.roll;

/** Whether motion meant for a picture that is not here can be shown on the one that is: no jump from what was seen last,
 *  which of a picture shown as it is was the face in it. */
async function near(flat) {
  if (!newest) return false;
  const place = newest.asIs ? placeOf(await faceIn(newest.shows)) : newest.flat.subarray(3, 7);
  return place.every((value, i) => Math.abs(flat[3 + i] - value) < JUMP);
}

const placeOf = ({ motion: { translation, scale } }) => [...translation, Math.log(scale)]; // as motion has it from its fourth value on
const pixels = (picture) => picture.pixels ??= rgba(picture.planes, size);
const faceIn = async (picture) => picture.face ??= await networks.estimate(pixels(picture));

async function render({ flat, shows, pts, asIs }) {
  if (asIs && straight()) return pixels(shows).slice();
  const begin = performance.now(), face = await (asIs ? glimpse(shows) : faceIn(shows));
  if (asIs && !face.sure) return pixels(shows).slice(); // there is nobody to be turned
  const { canonical } = face, coded = unpacked(flat, canonical.length), motion = asIs ? { ...face.motion, scene: coded.scene.map(() => 0) } : coded;
  const drawn = (features, source) => networks.picture(features, source, motion, canonical, view, neck);
  const blinking = async (picture) => { // its eyes closed as an earlier picture shows them, where this one does not
    const other = closedEyes.needed({ face, shot: shows.shot, picture: shows }, motion.delta, pts * header.timeBase[0] / header.timeBase[1]);
    if (!other) return picture;
    other.picture.features ??= await networks.features(other.face); // it may have been drawn with lent ones
    return withEyes(picture, await drawn(other.picture.features, other.face), posed(motion, canonical, view, neck).keypoints, size);
  };
  if (shows.features) return blinking(await drawn(shows.features, face));
  // coded motion borrows too: how the scene moved between the two pictures is not known, and small in so short a time
  const lent = !straight() && loan.take(shows.shot, face, begin);
  if (lent) return blinking(await drawn(lent.features, lent.face));
  shows.features = await networks.features(face);
  const picture = await drawn(shows.features, face);
  loan.offer(shows.shot, shows.features, face, begin, performance.now());
  return blinking(picture);
}

/** The face of a picture shown as it is, of which no motion came: looked for where it was shown last. */
async function glimpse(shows) {
  if (!glimpsed && !shows.glimpse) await faceIn(shows); // as coded motion will want it
  const face = shows.face ?? (shows.glimpse ??= await networks.follow(pixels(shows), glimpsed));
  glimpsed = face.sure ? face.box : null;
  return face;
}
