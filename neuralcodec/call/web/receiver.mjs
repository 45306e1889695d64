// A receiver with nothing installed: a worker that turns datagrams into pictures with onnxruntime-web (WebAssembly).
//
// In: { open: true } once, { data: ArrayBuffer } for each datagram, { view: { yaw, pitch, roll } }.
// Out: { ready }, { picture, size, pts, ms }, { ask: "reference" | "intra" }, { problem: sentence }.
import { BitstreamError, MotionDecoder, hex, parsePacket, place, pose } from "./bitstream.mjs";
import { concat, decodeReference } from "./reference.mjs";

const PICTURE = 1, HELD = 8, ARRIVING = 4, BYTES_MAX = 1 << 20;
const FIRST_BOX = [0, -0.126, 0.7]; // where a face usually is; the looks below find where it really is
const LOOKS = 5; // of the motion network at a reference; measured within 0.1 px of where Python's detector leads it
const ASK_AGAIN = 500; // ms

let ort, motionNet, referenceNet, renderNet, size, packId, motion, header = null;
let view = { yaw: 0, pitch: 0, roll: 0 };
const held = new Map(), arriving = new Map(), asked = { reference: -1e9, intra: -1e9 };
let shows = null, lacks = true, broken = true, sequence = null, pts = 0, newest = null;
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
  [size, packId] = [pack.size, pack.id];
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
  if (packet.kind === "header") {
    if (packet.pack !== packId) throw new Error(`the stream needs the model pack ${packet.pack}, this page has ${packId}`);
    header = packet;
  } else if (packet.kind === "reference" && header) await onPart(packet);
  else if (packet.kind === "motion" && header) onMotion(packet);
  if (!header || lacks) ask("reference");
  else if (broken) ask("intra");
}

function ask(what) {
  if (performance.now() - asked[what] < ASK_AGAIN) return;
  asked[what] = performance.now();
  self.postMessage({ ask: what });
}

async function onPart(part) {
  const slot = part.id % HELD;
  if (part.codec !== PICTURE || held.get(slot)?.hash === part.hash) return;
  const key = `${part.id} ${part.hash}`;
  const pieces = arriving.get(key) ?? arriving.set(key, new Map()).get(key);
  pieces.set(part.index, part.payload);
  while (arriving.size > ARRIVING) arriving.delete(arriving.keys().next().value);
  if (pieces.size < part.count) return;
  arriving.delete(key);
  const coded = concat(Array.from({ length: part.count }, (_, index) => pieces.get(index)));
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", coded));
  if (coded.length > BYTES_MAX || hex(digest.subarray(0, 4)) !== part.hash) return;
  const pixels = await decodeReference(coded, size).catch(() => null);
  if (!pixels) return;
  held.set(slot, { ...await features(pixels), id: part.id, hash: part.hash });
  lacks = false;
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
    const named = held.get(packet.reference % HELD);
    lacks = named?.id !== packet.reference;
    if (!lacks) shows = named;
  }
  if (!shows || lacks || (broken && !packet.intra)) { broken = true; return; }
  broken = true; // until the payload has proved good
  const frames = motion.decode(packet);
  broken = false;
  newest = { flat: frames.at(-1).flat, shows, pts, fresh: true };
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

async function render({ flat, shows: { feeds, canonical } }) {
  const { rotation, keypoints } = pose(flat, canonical, view);
  const out = await renderNet.run({ ...feeds, driving_keypoints: tensor(keypoints, 1, keypoints.length / 3, 3), driving_rotation: tensor(rotation, 1, 3, 3) });
  const values = out.picture.data, plane = size * size, picture = new Uint8ClampedArray(4 * plane);
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) picture[4 * i + c] = values[c * plane + i] * 255;
    picture[4 * i + 3] = 255;
  }
  return picture;
}
