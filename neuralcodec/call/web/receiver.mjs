// A receiver with nothing installed: a worker that turns datagrams into pictures with onnxruntime-web (WebAssembly).
//
// In: { open: true } once, { data: ArrayBuffer } for each datagram, { view: { yaw, pitch, roll } }.
// Out: { ready }, { picture, size, pts, ms }, { ask: "reference" | "intra" }, { problem: sentence }.
import { BitstreamError, MotionDecoder, hex, parsePacket, place, pose } from "./bitstream.mjs";
import { Chain, concat, decodeStill } from "./reference.mjs";

const PICTURE = 1, KEY = 3, SIGNED = 0x80, SIGNATURE = 64, HELD = 8, ARRIVING = 4, BYTES_MAX = 1 << 20;
const JUMP = 0.15; // from one frame to the next, coded-picture units or of log scale: more is another crop, not the head
const FIRST_BOX = [0, -0.126, 0.7]; // where a face usually is; the looks below find where it really is
const LOOKS = 5; // of the motion network at a reference; measured within 0.1 px of where Python's detector leads it
const ASK_AGAIN = 500; // ms

let ort, motionNet, referenceNet, renderNet, size, packId, neck, motion, header = null;
let view = { yaw: 0, pitch: 0, roll: 0 };
const held = new Map(), arriving = new Map(), early = new Map(), asked = { reference: -1e9, intra: -1e9 };
let shows = null, named = null, lacks = true, broken = true, sequence = null, pts = 0, newest = null, chain = null;
let moved = null; // the scene of the frame shown last, to be added while the picture named since then is not here
let queue = [], awake = null;

self.onmessage = ({ data }) => {
  if (data.open) return open().then(run).catch((error) => self.postMessage({ problem: `The receiver in the browser stopped: ${error.message}.` }));
  if (data.view) { view = data.view; if (newest) newest.fresh = true; }
  if (data.data) queue.push(new Uint8Array(data.data));
  awake?.();
};

async function open() {
  ort = await import("/ort/ort.wasm.min.mjs");
  ort.env.wasm.wasmPaths = "/ort/";
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  const load = async (name) => ort.InferenceSession.create(new Uint8Array(await (await got(`/pack/${name}.onnx`)).arrayBuffer()), { executionProviders: ["wasm"] });
  const pack = await (await got("/pack/pack.json")).json();
  [size, packId, neck] = [pack.size, pack.id, pack.neck];
  motion = new MotionDecoder(await (await got("/pack/tables.json")).json());
  motionNet = await load("motion");
  referenceNet = await load("reference");
  renderNet = await load("render");
  self.postMessage({ ready: true, threads: ort.env.wasm.numThreads });
}

async function got(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address} cannot be loaded (${response.status})`);
  return response;
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
    }
    if (newest?.fresh) {
      newest.fresh = false;
      const begin = performance.now(), picture = await render(newest);
      self.postMessage({ picture, size, pts: newest.pts, ms: performance.now() - begin }, [picture.buffer]);
      await new Promise((resolve) => setTimeout(resolve)); // let messages in
    } else if (!queue.length) {
      await new Promise((resolve) => { awake = resolve; });
      awake = null;
    }
  }
}

async function take(packet) {
  if (packet.kind === "bundle") {
    for (const inside of packet.packets) await take(inside);
    return;
  }
  if (packet.kind === "header") {
    if (packet.pack !== packId) throw new Error(`the stream needs the model pack ${packet.pack}, this page has ${packId}`);
    header = packet;
  } else if (packet.kind === "reference" && header) await onPart(packet);
  else if (packet.kind === "update" && header) await onUpdate(packet);
  else if (packet.kind === "motion" && header) onMotion(packet);
  if (!header || lacks) ask("reference");
  else if (broken) ask("intra");
}

function ask(what) {
  if (performance.now() - asked[what] < ASK_AGAIN) return;
  asked[what] = performance.now();
  self.postMessage({ ask: what });
}

/** The whole picture that a part completes, null until then. */
function joined(part, key) {
  const pieces = arriving.get(key) ?? arriving.set(key, new Map()).get(key);
  pieces.set(part.index, part.payload);
  while (arriving.size > ARRIVING) arriving.delete(arriving.keys().next().value);
  if (pieces.size < part.count) return null;
  arriving.delete(key);
  const coded = concat(Array.from({ length: part.count }, (_, index) => pieces.get(index) ?? new Uint8Array()));
  return coded.length > BYTES_MAX ? null : coded;
}

const digest = async (...pieces) => new Uint8Array(await crypto.subtle.digest("SHA-256", concat(pieces)));
const start = (whole) => hex(whole.subarray(0, 4)); // what packets carry of a digest

async function onPart(part) {
  const codec = part.codec & ~SIGNED, known = held.get(part.id % HELD);
  if ((codec !== PICTURE && codec !== KEY) || (known?.id === part.id && known.hash === part.hash)) return;
  let coded = joined(part, `${part.id} ${part.hash}`);
  if (!coded || start(await digest(coded)) !== part.hash) return;
  if (part.codec & SIGNED) coded = coded.subarray(SIGNATURE); // this page takes what the server sends: it checks no keys
  try {
    if (codec === KEY) { chain?.close(); chain = new Chain(size); }
    hold(part.id, codec === KEY ? await chain.key(coded, await digest(coded)) : await decodeStill(coded, size), part.hash);
  } catch { return; } // damaged: what is named and not here will be asked for
  await followUpdates();
}

async function onUpdate(part) {
  if (early.has(part.hash) || held.get(part.id % HELD)?.hash === part.hash) return;
  const coded = joined(part, part.hash);
  if (!coded) return;
  early.set(part.hash, { id: part.id, coded: part.signed ? coded.subarray(SIGNATURE) : coded });
  await followUpdates();
  while (early.size > HELD) early.delete(early.keys().next().value);
}

async function followUpdates() {
  for (let found = true; found && chain?.digest;) {
    found = false;
    for (const [hash, { id, coded }] of early) {
      const next = await digest(chain.digest, coded);
      if (start(next) !== hash) continue;
      early.delete(hash);
      found = true;
      await chain.update(coded, next).then((pixels) => hold(id, pixels, hash), () => {});
      break;
    }
  }
}

function hold(id, pixels, hash) {
  held.set(id % HELD, { id, hash, pixels, features: null });
  if (named === null || named === id) lacks = false;
  if (named === id) [shows, moved] = [held.get(id % HELD), null];
}

function onMotion(packet) {
  if (sequence !== null) {
    const ahead = (packet.sequence - sequence + 256) % 256;
    if ((ahead === 0 || ahead >= 192) && !(packet.intra && packet.pts > pts)) return; // late or double
    if (ahead > 1) broken = true;
  }
  const lost = sequence === null ? 0 : (packet.sequence - sequence - 1 + 256) % 256;
  sequence = (packet.sequence + packet.frames - 1) % 256;
  pts = packet.pts ?? pts + lost * header.duration + (packet.step ?? header.duration);
  pts += (packet.frames - 1) * header.duration;
  if (packet.reference !== undefined) {
    if (named !== packet.reference) moved = newest && newest.flat.subarray(motion.sceneAt);
    named = packet.reference;
    const picture = held.get(named % HELD);
    lacks = picture?.id !== named;
    if (!lacks) [shows, moved] = [picture, null];
  }
  if (broken && !packet.intra) return;
  broken = true; // until the payload has proved good
  const flat = motion.decode(packet).at(-1).flat;
  broken = false;
  moved?.forEach((value, i) => { flat[motion.sceneAt + i] += value; });
  if (shows && (!lacks || near(flat))) newest = { flat, shows, pts, asIs: packet.asIs, fresh: true };
}

/** Whether motion meant for a picture that is not here can be shown on the one that is. */
function near(flat) {
  return newest !== null && [3, 4, 5, 6].every((i) => Math.abs(flat[i] - newest.flat[i]) < JUMP);
}

// --- networks -----------------------------------------------------------------------------------------------------

const tensor = (data, ...shape) => new ort.Tensor("float32", data, shape);

async function features(pixels) {
  const plane = size * size, values = new Float32Array(3 * plane);
  for (let i = 0; i < plane; i++) for (let c = 0; c < 3; c++) values[c * plane + i] = pixels[4 * i + c] / 255;
  const image = tensor(values, 1, 3, size, size);
  let box = FIRST_BOX, seen;
  for (let look = 0; look < LOOKS; look++) {
    seen = await motionNet.run(only(motionNet, { image, box: tensor(Float32Array.from(box), 1, 3) }));
    box = [seen.translation.data[0], seen.translation.data[1], seen.scale.data[0]];
  }
  const canonical = seen.canonical.data, turn = seen.rotation.data;
  const keypoints = place(canonical, seen.delta.data, turn, seen.scale.data[0], seen.translation.data);
  const feeds = only(renderNet, {
    image, ...await referenceNet.run({ image }),
    source_keypoints: tensor(keypoints, 1, keypoints.length / 3, 3), source_rotation: tensor(Float32Array.from(turn), 1, 3, 3),
  });
  return { feeds, canonical };
}

const only = (net, values) => Object.fromEntries(Object.entries(values).filter(([name]) => net.inputNames.includes(name)));

async function render({ flat, shows, asIs }) {
  if (asIs && !view.yaw && !view.pitch && !view.roll) return shows.pixels.slice();
  const { feeds, canonical } = shows.features ??= await features(shows.pixels);
  const { rotation, keypoints, scene } = pose(flat, canonical, view, neck);
  const out = await renderNet.run({ ...feeds, ...only(renderNet, {
    driving_keypoints: tensor(keypoints, 1, keypoints.length / 3, 3), driving_rotation: tensor(rotation, 1, 3, 3),
    driving_scene: tensor(scene, 1, scene.length / 2, 2),
  }) });
  const values = out.picture.data, plane = size * size, picture = new Uint8ClampedArray(4 * plane);
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) picture[4 * i + c] = values[c * plane + i] * 255;
    picture[4 * i + 3] = 255;
  }
  return picture;
}
