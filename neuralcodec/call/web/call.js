// The page of `neuralcodec call`: camera out, comparison back, sliders over a data channel. Plain browser APIs only.
//
// ?measure marks every camera picture with its capture time, in a strip that the server passes through untouched, so
// that capture-to-display latency is read from the very pixels that are shown.
import { markedTrack, readMark } from "/web/mark.js";

const $ = (id) => document.getElementById(id);
const RATES = [1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32, 64]; // kbit/s, of the first slider
const LINKS = [4, 6, 8, 12, 16, 32, 64, 128, 0]; // kbit/s, of the last; 0 is unlimited
const TURN = { yaw: 20, pitch: 15 }; // degrees at the joystick's rim
const KEY_STEP = 1 / 5; // of the radius
const STAGES = { // in the order of the signal's path; names as the server sends them
  "wait": "Wait for encoder", "send face": "Find face", "send motion": "Motion network", "send reference": "Code reference",
  "send entropy": "Quantize, code", "send check": "Check own picture", "network": "Simulated network", "receive entropy": "Decode motion",
  "receive reference": "Read reference", "receive render": "Render face", "receive paste": "Paste back",
  "compare": "H.264 pane", "total": "Total",
};
const GONE = "The server has gone. Start `neuralcodec call` again, then press Start camera.";
const BROKEN = "The connection to the server broke off. Press Start camera to go on.";
const PAUSE = 8000; // ms that a connection may be interrupted for: a laptop's lid, another network, a busy server
const LOADING = "Loading the networks…";
const TIMES = 1000; // of the last pictures decoded here, how long they took
const MEASURE = new URLSearchParams(location.search).has("measure");

const camera = $("camera"), comparison = $("comparison");
const panes = ["original", "ours", "h264"].map((id) => $(id).getContext("2d"));
// worker: the receiver in this browser from its start on; decoder: the same once it is ready.
const state = { dropped: 0, peer: null, control: null, stream: null, recorder: null, worker: null, decoder: null, stats: null, history: [], shown: 0 };
// What tests and `benchmarks.call` read.
window.neuralcodecCall = { state, latencies: [], displayed: [] };

// --- sentences ----------------------------------------------------------------------------------------------------

function say(text) { $("status").textContent = text; }

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

function cameraProblem(error) {
  switch (error.name) {
    case "NotAllowedError": return "The camera was refused. Allow it for this page (the camera sign in the address bar), then press Start camera.";
    case "NotFoundError": case "OverconstrainedError": return "No camera was found. Plug one in, or close the cover's switch, then press Start camera.";
    case "NotReadableError": case "AbortError": return "The camera is in use by another program. Close that one, then press Start camera.";
    default: return `The camera cannot be opened (${error.message || error.name}). Try another browser.`;
  }
}

function lacking() {
  if (!window.isSecureContext) return "Browsers give cameras only to https pages and to this machine itself. Open the page as http://localhost with the same port.";
  if (!navigator.mediaDevices?.getUserMedia || !window.RTCPeerConnection) return "This browser has no camera or WebRTC support. Use a current Chrome, Edge, Firefox or Safari.";
  if (!("requestVideoFrameCallback" in HTMLVideoElement.prototype)) return "This browser is too old to show the pictures. Update it, or use a current Chrome, Edge, Firefox or Safari.";
  return "";
}

// --- a call -------------------------------------------------------------------------------------------------------

let attempt = 0; // counts starts and stops: what an earlier start was waiting for comes too late

/** film: a File to play in place of the camera. */
async function start(film = null) {
  const mine = ++attempt, late = () => mine !== attempt;
  problem("");
  const missing = lacking();
  if (missing) return problem(missing);
  $("start").disabled = true;
  say(film ? "Opening the film…" : "Opening the camera…");
  let stream;
  try {
    stream = await (film ? filmStream(film) : navigator.mediaDevices.getUserMedia({
      // of a camera of 30, 25 would leave out every sixth picture: 67 ms without a new one
      video: { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30, max: 30 }, facingMode: "user" }, audio: false,
    }));
  } catch (error) {
    if (late()) return;
    problem(film ? `${film.name} has no picture that this browser can play. Take another film, or the camera.` : cameraProblem(error));
    return stop();
  }
  if (late()) return stream.getTracks().forEach((track) => track.stop());
  state.stream = stream;
  if (!film) {
    camera.srcObject = stream;
    stream.getVideoTracks()[0].onended = () => { problem("The camera was unplugged or taken away. Press Start camera to go on."); stop(); };
    await camera.play().catch(() => {});
  }
  if (late()) return;
  say("Connecting…");
  try {
    await connect(MEASURE ? new MediaStream([markedTrack(stream.getVideoTracks()[0])]) : stream, late);
  } catch (error) {
    if (late()) return;
    problem(error instanceof TypeError ? "The server does not answer. Is `neuralcodec call` still running? Start it, then press Start camera." : error.message);
    return stop();
  }
  if (late()) return;
  $("start").disabled = false;
  $("start").textContent = "Stop";
}

async function filmStream(film) {
  camera.src = URL.createObjectURL(film);
  camera.loop = true;
  await camera.play();
  if (!camera.videoWidth) throw new Error("there is only sound");
  const stream = (camera.captureStream ?? camera.mozCaptureStream).call(camera);
  while (!stream.getVideoTracks().length) await new Promise((resolve) => { stream.onaddtrack = resolve; });
  return new MediaStream(stream.getVideoTracks());
}

async function connect(stream, late) {
  const peer = state.peer = new RTCPeerConnection({ iceServers: [] });
  state.control = peer.createDataChannel("control");
  state.control.onopen = () => sendSettings();
  state.control.onclose = () => lost(peer);
  state.control.onmessage = (event) => onControl(JSON.parse(event.data));
  const packets = peer.createDataChannel("packets");
  packets.binaryType = "arraybuffer";
  packets.onmessage = (event) => { state.packetBytes = (state.packetBytes ?? 0) + event.data.byteLength; state.decoder?.postMessage({ data: event.data }, [event.data]); };
  const sender = peer.addTransceiver(stream.getVideoTracks()[0], { direction: "sendrecv", streams: [stream] }).sender;
  peer.ontrack = (event) => {
    event.receiver.jitterBufferTarget = 0; // on loopback there is no jitter worth waiting for
    comparison.srcObject = new MediaStream([event.track]);
    comparison.play().catch(() => {});
  };
  let found = false, pause;
  peer.onconnectionstatechange = () => {
    if (peer !== state.peer) return;
    clearTimeout(pause);
    const now = peer.connectionState;
    if (now === "connected") { found = true; say("Connected. Looking for a face…"); }
    if (now === "disconnected") { say("The connection is interrupted…"); pause = setTimeout(lost, PAUSE, peer); }
    if (now === "closed" || (now === "failed" && found)) lost(peer);
    if (now === "failed" && !found) { problem("No network path to the server was found. If this machine is offline, switch Wi-Fi on (no internet is needed), or use the address of a network card with --host."); stop(); }
  };
  await peer.setLocalDescription(await peer.createOffer());
  await gathered(peer);
  if (late()) return;
  const response = await fetch("/offer", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ sdp: peer.localDescription.sdp, marked: MEASURE }) });
  const answer = await response.json().catch(() => ({ error: "The server's answer cannot be read; reload the page." }));
  if (!response.ok) throw new Error(answer.error);
  if (late()) return navigator.sendBeacon("/end", answer.token);
  state.token = answer.token;
  await peer.setRemoteDescription({ type: "answer", sdp: answer.sdp });
  const parameters = sender.getParameters(); // the codec should see the camera, not WebRTC's first cautious seconds
  if (parameters.encodings?.length) { parameters.encodings[0].maxBitrate = 2_500_000; parameters.degradationPreference = "maintain-resolution"; await sender.setParameters(parameters).catch(() => {}); }
}

/** The connection is at its end: because the server is, or though it still answers? */
async function lost(peer) {
  const over = () => peer !== state.peer || peer.connectionState === "connected" && state.control.readyState === "open";
  if (over()) return;
  const answers = await fetch("/status", { signal: AbortSignal.timeout(PAUSE) }).then(() => true, () => false);
  if (over()) return;
  problem(answers ? BROKEN : GONE);
  stop();
}

/** Tell the server at once, on a way that loses nothing; also when the tab is closed. */
function bye() {
  if (state.token) navigator.sendBeacon("/end", state.token);
  state.token = null;
}
addEventListener("pagehide", bye);

function gathered(peer) {
  return new Promise((resolve) => {
    const done = () => { if (peer.iceGatheringState === "complete") resolve(); };
    peer.addEventListener("icegatheringstatechange", done);
    setTimeout(resolve, 2000); // with a stuck network card: go on with the addresses there are
    done();
  });
}

function stop() {
  attempt += 1;
  if (state.recorder) record();
  const { peer, stream } = state;
  bye();
  state.peer = state.control = state.stream = null;
  peer?.close();
  stream?.getTracks().forEach((track) => track.stop());
  camera.srcObject = comparison.srcObject = null;
  if (camera.src) { URL.revokeObjectURL(camera.src); camera.removeAttribute("src"); camera.load(); }
  dismiss();
  $("browser-in").checked = false;
  $("record").disabled = true;
  $("start").disabled = false;
  $("start").textContent = "Start camera";
  say("Stopped.");
}

// --- pictures -----------------------------------------------------------------------------------------------------

function onComparison(now, metadata) {
  comparison.requestVideoFrameCallback(onComparison);
  const size = comparison.videoWidth / 3;
  if (!size || !state.peer) return;
  panes.forEach((pane, index) => {
    if (index === 1 && state.decoder) return; // drawn from the worker's pictures
    if (pane.canvas.width !== size) pane.canvas.width = pane.canvas.height = size;
    pane.drawImage(comparison, index * size, 0, size, size, 0, 0, size, size);
  });
  state.shown += 1;
  $("record").disabled = false;
  if (MEASURE) {
    const captured = readMark(comparison, size * 3, size);
    if (captured !== null) {
      window.neuralcodecCall.latencies.push(metadata.expectedDisplayTime - captured);
      window.neuralcodecCall.displayed.push(now);
    }
  }
  if (state.recorder) drawRecording();
}
comparison.requestVideoFrameCallback?.(onComparison);

// --- figures ------------------------------------------------------------------------------------------------------

function onControl(message) {
  if (message.refused) return problem(message.refused);
  const stats = message.stats;
  if (!stats) return;
  state.stats = stats;
  if (stats.problem) { problem(stats.problem); return stop(); }
  if (!stats.face) say("No face is seen. Look at the camera, come closer, or switch a light on; the last picture stays.");
  else if (stats.references === 0) say("Connected. Looking for a face…");
  else if (stats.camera_s > 2) say("The camera gives no pictures; the last one stays.");
  else if (stats.dropped > state.dropped) say(`In a call, ${clock(stats.seconds)}. The network is narrower than what is sent: choose a lower rate, or a wider link.`);
  else if (stats.seconds > 6 && stats.fps < 10) say(`In a call, ${clock(stats.seconds)}. This machine manages ${stats.fps.toFixed(0)} frames a second: close what else keeps it busy.`);
  else say(`In a call, ${clock(stats.seconds)}.`);
  state.dropped = stats.dropped;
  $("kbps").textContent = stats.kbps.toFixed(1);
  $("frame-bytes").textContent = stats.frame_bytes.toFixed(1);
  $("wire").textContent = `${stats.wire_kbps.toFixed(1)} kbit/s with IP and UDP headers`;
  $("fps").textContent = stats.fps.toFixed(1);
  $("left-out").textContent = stats.left_out ? `${stats.left_out} camera pictures left out` : "\u00a0";
  const recent = window.neuralcodecCall.latencies.slice(-50).sort((a, b) => a - b);
  const latency = MEASURE && recent.length ? recent[recent.length >> 1] : stats.stages.total;
  $("latency-what").textContent = MEASURE ? "ms, capture to display" : "ms in codec and network";
  $("latency").textContent = latency === undefined ? "–" : latency.toFixed(0);
  const lost = stats.lost + stats.dropped;
  $("lost").textContent = lost ? `${lost} of ${stats.packets} packets lost` : "\u00a0";
  $("ours-rate").textContent = `256×256, ${stats.fps.toFixed(0)} fps, ${stats.kbps.toFixed(1)} kbit/s`;
  $("original-rate").textContent = camera.videoWidth ? `${camera.videoWidth}×${camera.videoHeight}, not coded` : "–";
  const rate = stats.seconds > 1 ? stats.h264.bytes * 8 / 1000 / stats.seconds : 0;
  $("h264-rate").textContent = `${stats.h264.side}×${stats.h264.side}, ${stats.h264.fps.toFixed(0)} fps, ${rate.toFixed(1)} kbit/s`;
  $("engine").textContent = state.decoder ? `Decoding in this browser (${window.neuralcodecCall.receiver.by})` : stats.provider.replace("ExecutionProvider", " (ONNX Runtime)");
  spark(stats.kbps);
  stageTable(stats.stages);
}

function clock(seconds) { return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`; }

function spark(kbps) {
  state.history.push(kbps);
  if (state.history.length > 120) state.history.shift();
  const top = Math.max(1, ...state.history);
  $("spark").firstElementChild.setAttribute("d", state.history.map((v, x) => `${x ? "L" : "M"}${x} ${(27 - 26 * v / top).toFixed(1)}`).join(""));
}

function stageTable(stages) {
  const rows = Object.entries(STAGES).filter(([key]) => key in stages);
  const top = Math.max(1, ...rows.map(([key]) => stages[key]));
  const body = $("stages").tBodies[0];
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach(([key, name], index) => {
    let row = body.rows[index];
    if (!row) {
      row = body.insertRow();
      row.append(document.createElement("th"), document.createElement("td"), document.createElement("td"));
      row.cells[0].scope = "row";
      row.cells[1].append(document.createElement("i"));
    }
    row.className = key === "total" ? "total" : "";
    row.cells[0].textContent = name;
    row.cells[1].firstChild.style.width = `${100 * stages[key] / top}%`;
    row.cells[2].textContent = stages[key].toFixed(1);
  });
}

// --- controls -----------------------------------------------------------------------------------------------------

const view = { x: 0, y: 0 }; // of the joystick, -1..1

function settings() {
  return {
    kbps: RATES[$("kbps-in").value], loss: +$("loss-in").value, delay_ms: +$("delay-in").value, link_kbps: LINKS[$("link-in").value],
    yaw: view.x * TURN.yaw, pitch: view.y * TURN.pitch, browser: state.decoder !== null,
  };
}

function sendSettings() {
  if (state.control?.readyState === "open") state.control.send(JSON.stringify(settings()));
  const { yaw, pitch } = settings();
  state.decoder?.postMessage({ view: { yaw, pitch, roll: 0 } });
}

function show() {
  const s = settings();
  $("kbps-out").textContent = `${s.kbps} kbit/s`;
  $("loss-out").textContent = `${s.loss} %`;
  $("delay-out").textContent = `${s.delay_ms} ms`;
  $("link-out").textContent = s.link_kbps ? `${s.link_kbps} kbit/s` : "unlimited";
  $("kbps-in").setAttribute("aria-valuetext", $("kbps-out").textContent);
  $("link-in").setAttribute("aria-valuetext", $("link-out").textContent);
  const turned = (angle, more, less) => angle ? `${Math.abs(angle).toFixed(0)}° ${angle > 0 ? more : less}` : "";
  $("view-out").textContent = [turned(s.yaw, "right", "left"), turned(s.pitch, "down", "up")].filter(Boolean).join(", ") || "as filmed";
  $("stick").firstElementChild.style.transform = `translate(${view.x * 70}px, ${view.y * 70}px)`;
}

function turn(x, y) {
  const length = Math.max(1, Math.hypot(x, y));
  view.x = Math.abs(x) < 1e-6 ? 0 : x / length;
  view.y = Math.abs(y) < 1e-6 ? 0 : y / length;
  show();
  sendSettings();
}

for (const id of ["kbps-in", "loss-in", "delay-in", "link-in"]) $(id).addEventListener("input", () => { show(); sendSettings(); });
const stick = $("stick");
const drag = (event) => {
  const box = stick.getBoundingClientRect();
  turn((event.clientX - box.left) / box.width * 2 - 1, (event.clientY - box.top) / box.height * 2 - 1);
};
stick.addEventListener("pointerdown", (event) => { stick.setPointerCapture(event.pointerId); stick.focus(); drag(event); });
stick.addEventListener("pointermove", (event) => { if (stick.hasPointerCapture(event.pointerId)) drag(event); });
stick.addEventListener("dblclick", () => turn(0, 0));
stick.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (step) turn(view.x + step[0] * KEY_STEP, view.y + step[1] * KEY_STEP);
  else if (event.key === "Home") turn(0, 0);
  else return;
  event.preventDefault();
});
$("straight").addEventListener("click", () => turn(0, 0));
$("film").addEventListener("change", async ({ target }) => {
  const [film] = target.files;
  target.value = "";
  if (!film) return;
  if (state.peer || state.stream) stop();
  await start(film);
});
$("start").addEventListener("click", () => state.peer || state.stream ? (problem(""), stop()) : start());

// --- recording ----------------------------------------------------------------------------------------------------

const reel = document.createElement("canvas");

function record() {
  if (state.recorder) { state.recorder.stop(); return; }
  if (!window.MediaRecorder) return problem("This browser cannot record. Use a current Chrome, Edge, Firefox or Safari.");
  reel.width = panes[0].canvas.width * 3;
  reel.height = panes[0].canvas.height + 32;
  drawRecording();
  const type = ["video/webm;codecs=vp8", "video/webm", "video/mp4"].find((kind) => MediaRecorder.isTypeSupported(kind));
  const recorder = state.recorder = new MediaRecorder(reel.captureStream(25), { mimeType: type, videoBitsPerSecond: 4_000_000 });
  const pieces = [];
  recorder.ondataavailable = (event) => pieces.push(event.data);
  recorder.onstop = () => {
    state.recorder = null;
    $("record").textContent = "Record";
    $("record").setAttribute("aria-pressed", "false");
    const blob = new Blob(pieces, { type });
    if (!blob.size) return problem("Nothing was recorded: stop later than you start.");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `neuralcodec-call.${type.includes("webm") ? "webm" : "mp4"}`;
    link.click();
    window.neuralcodecCall.recorded = blob.size;
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  };
  recorder.start(1000);
  $("record").textContent = "Stop recording";
  $("record").setAttribute("aria-pressed", "true");
}

function drawRecording() {
  const context = reel.getContext("2d");
  context.fillStyle = "#0b0e13";
  context.fillRect(0, 0, reel.width, reel.height);
  context.font = "15px system-ui, sans-serif";
  const titles = ["Camera", `neuralcodec ${$("ours-rate").textContent}`, `H.264 ${$("h264-rate").textContent}`];
  panes.forEach((pane, index) => {
    context.drawImage(pane.canvas, index * pane.canvas.width, 32);
    context.fillStyle = "#e8edf4";
    context.fillText(titles[index], index * pane.canvas.width + 8, 21);
  });
}
$("record").addEventListener("click", record);

// --- decoding in the browser --------------------------------------------------------------------------------------

/** Outside a call nothing else would take the sentence away. */
function loaded() { if ($("status").textContent === LOADING) say("Ready."); }

function dismiss() {
  loaded();
  state.worker?.terminate();
  state.worker = state.decoder = null;
}

async function decodeHere(wanted) {
  dismiss();
  if (!wanted) return sendSettings();
  const back = (sentence) => { dismiss(); $("browser-in").checked = false; problem(sentence); sendSettings(); };
  const status = await fetch("/status").then((response) => response.json()).catch(() => null);
  if (!$("browser-in").checked || state.worker) return; // switched off meanwhile, or off and on: one worker is enough
  if (!status?.ort) return back("To decode here the page needs onnxruntime-web. Run: npm install onnxruntime-web, then start the server again with --ort node_modules/onnxruntime-web/dist");
  if (!("VideoDecoder" in window)) return back("This browser has no WebCodecs, which reference pictures need. Use a current Chrome, Edge, Firefox or Safari.");
  say(LOADING);
  const worker = state.worker = new Worker("/web/receiver.mjs", { type: "module" });
  worker.onerror = (event) => { if (worker === state.worker) back(`The receiver in the browser stopped: ${event.message || "its files cannot be loaded"}.`); };
  worker.onmessage = ({ data }) => {
    if (worker !== state.worker) return; // sent before it was dismissed
    if (data.problem) return back(data.problem);
    if (data.ready) { loaded(); state.decoder = worker; window.neuralcodecCall.receiver = { by: data.by, frames: 0, since: performance.now(), ms: [] }; return sendSettings(); }
    if (data.feedback) return state.control?.readyState === "open" && state.control.send(JSON.stringify({ feedback: data.feedback }));
    if (data.picture) {
      const pane = panes[1];
      if (pane.canvas.width !== data.size) pane.canvas.width = pane.canvas.height = data.size;
      pane.putImageData(new ImageData(data.picture, data.size), 0, 0);
      const { receiver } = window.neuralcodecCall;
      receiver.frames += 1;
      if (receiver.ms.push(data.ms) > TIMES) receiver.ms.shift();
    }
  };
  worker.postMessage({ open: true });
}
$("browser-in").addEventListener("change", (event) => decodeHere(event.target.checked));

// --- first look ---------------------------------------------------------------------------------------------------

$("kbps-in").value = RATES.indexOf(4);
show();
problem(lacking());
fetch("/status").then((response) => response.json()).then((status) => {
  if (!RATES.includes(status.kbps)) RATES.push(status.kbps);
  RATES.sort((a, b) => a - b);
  $("kbps-in").max = RATES.length - 1;
  $("kbps-in").value = RATES.indexOf(status.kbps);
  show();
}).catch(() => {});
