"""`neuralcodec call` as people use it: the page in headless Chromium, with the portrait's film as its camera."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
import wave
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neuralcodec as nc
from benchmarks.browser import CallProcess, chromium, missing, write_camera
from neuralcodec.demo import moving_portrait
from neuralcodec.media import VideoWriter
from neuralcodec.motion import Array

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}")

PATIENCE = 180.0  # seconds, for what takes a few on a free machine
ORT = os.environ.get("NEURALCODEC_ORT_WEB", "")  # onnxruntime-web's dist folder, where there is one
DRAW_BY_BOTH = """
const [sent] = arguments;
[window.drawn, window.failed] = [[], ""];
for (const software of [true, false]) {
  const worker = new Worker("/web/receiver.mjs", { type: "module" });
  worker.onmessage = ({ data }) => {
    if (data.problem) failed = data.problem;
    if (data.ready) {
      worker.by = data.by;
      worker.postMessage({ view: { yaw: 5, pitch: 0, roll: 0 } });
      for (const data of sent) worker.postMessage({ data: Uint8Array.from(data).buffer });
    }
    if (data.picture) {
      drawn.push([worker.by, Array.from(data.picture)]);
      worker.terminate();
    }
  };
  worker.postMessage({ open: true, software });
}
"""


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("camera") / "portrait.mjpeg"
    write_camera(path, islice(moving_portrait(), 50))
    return path


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "talk.mp4"
    with VideoWriter(path, 256, 256, Fraction(1, 25)) as writer:
        for index, image in enumerate(islice(moving_portrait(), 25)):
            writer.write(image, index)
    return path


@pytest.fixture(scope="module")
def call() -> Iterator[CallProcess]:
    with CallProcess("--device", "cpu", "--sessions", "2", *(["--ort", ORT] if ORT else [])) as process:
        yield process


@pytest.fixture(scope="module")
def driver(camera: Path) -> Iterator[Any]:
    with chromium(camera) as browser:
        yield browser


def until(true: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    end = time.monotonic() + patience
    while not (found := true()):
        assert time.monotonic() < end, f"not within {patience:.0f} s: {what}"
        time.sleep(0.1)
    return found


def page(driver: Any, script: str) -> Any:
    return driver.execute_script(f"return {script}")


def text(driver: Any, name: str) -> str:
    return str(page(driver, f"document.getElementById('{name}').textContent"))


def start(driver: Any, address: str) -> None:
    driver.get(address)
    driver.find_element("id", "start").click()
    until(lambda: page(driver, "neuralcodecCall.state.shown") > 2, "pictures")


def stop(driver: Any, address: str) -> None:
    driver.find_element("id", "start").click()
    until(lambda: calls(address) == 0, "the call ends at the server")


def calls(address: str) -> int:
    with urllib.request.urlopen(address + "status") as answer:
        return int(json.load(answer)["calls"])


def errors(driver: Any, address: str = "") -> list[str]:
    """Of the page at an address; Chromium tells some of an earlier page's twice."""
    found = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    return [message for message in found if address in message]


def test_a_call_shows_pictures_and_true_figures(driver: Any, call: CallProcess) -> None:
    start(driver, call.address)
    for pane in ("original", "ours", "h264"):
        spread = page(driver, f"""(() => {{ const c = document.getElementById('{pane}');
            const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            return new Set(d).size; }})()""")
        assert spread > (100 if pane != "h264" else 0), pane
    # the page counts what left the encoder's socket, and gets every byte of it while nothing is lost
    same = "neuralcodecCall.state.stats && neuralcodecCall.state.packetBytes === neuralcodecCall.state.stats.bytes"
    until(lambda: page(driver, same), "the rate shown is what was sent")
    assert float(text(driver, "kbps")) > 0
    assert "In a call" in text(driver, "status") and not text(driver, "problem")

    loss = driver.find_element("id", "loss-in")
    loss.send_keys("\ue012")  # focus, by a key that changes nothing at 0
    for _ in range(20):
        loss.send_keys("\ue014")  # arrow right
    assert text(driver, "loss-out") == "20 %"
    until(lambda: page(driver, "neuralcodecCall.state.stats.lost") > 0, "packets are lost")
    shown = page(driver, "neuralcodecCall.state.shown")
    until(lambda: page(driver, "neuralcodecCall.state.shown") > shown + 3, "the call goes on with loss")

    stick = driver.find_element("id", "stick")
    stick.send_keys("\ue014\ue014\ue013")  # right, right, up
    assert text(driver, "view-out") == "8° right, 3° up"
    stick.send_keys("\ue011")  # home
    assert text(driver, "view-out") == "as filmed"

    driver.find_element("id", "record").click()
    assert page(driver, "document.getElementById('record').getAttribute('aria-pressed')") == "true"
    time.sleep(2)
    driver.find_element("id", "record").click()
    until(lambda: page(driver, "neuralcodecCall.recorded") or 0, "a recording")

    driver.execute_script("document.getElementById('browser-in').click()")
    if ORT:
        until(lambda: (page(driver, "neuralcodecCall.receiver") or {}).get("frames", 0) > 1, "pictures decoded here")
    else:
        until(lambda: "npm install onnxruntime-web" in text(driver, "problem"), "a sentence about onnxruntime-web")
    stop(driver, call.address)
    assert errors(driver) == []


def test_two_tabs_at_once_a_third_is_told_and_nothing_leaks(driver: Any, call: CallProcess) -> None:
    def files() -> int:
        return len(list(Path(f"/proc/{call.process.pid}/fd").iterdir()))

    first = driver.current_window_handle
    start(driver, call.address)
    stop(driver, call.address)
    if Path("/proc").is_dir():
        time.sleep(1)
        before = files()
    start(driver, call.address)
    driver.switch_to.new_window("tab")
    start(driver, call.address)
    assert calls(call.address) == 2
    driver.switch_to.new_window("tab")
    driver.get(call.address)
    driver.find_element("id", "start").click()
    until(lambda: "2 calls run already" in text(driver, "problem"), "the third is told why")
    driver.close()
    for handle in driver.window_handles:
        if handle != first:
            driver.switch_to.window(handle)
            driver.close()  # a tab closed in the middle of a call
    driver.switch_to.window(first)
    until(lambda: calls(call.address) == 1, "the closed tab's call ends")
    stop(driver, call.address)
    if Path("/proc").is_dir():
        until(lambda: files() <= before, "the files and sockets of all calls are closed", 30)
    errors(driver)  # the third tab's refusal is logged as one: read and forgotten


def test_a_pause_of_the_server_is_waited_for(driver: Any) -> None:
    with CallProcess("--device", "cpu") as process:
        start(driver, process.address)
        process.process.send_signal(signal.SIGSTOP)
        try:
            until(lambda: "interrupted" in text(driver, "status"), "the page notices")
        finally:
            process.process.send_signal(signal.SIGCONT)
        shown = page(driver, "neuralcodecCall.state.shown")
        until(lambda: page(driver, "neuralcodecCall.state.shown") > shown + 3, "the call goes on")
        assert (text(driver, "start"), text(driver, "problem")) == ("Stop", "")
        stop(driver, process.address)
    assert errors(driver, process.address) == []


def test_the_server_killed_and_started_again(driver: Any) -> None:
    with CallProcess("--device", "cpu") as first:
        start(driver, first.address)
        port = int(first.address.rstrip("/").rsplit(":", 1)[1])
        first.process.send_signal(signal.SIGKILL)
        until(lambda: "The server has gone" in text(driver, "problem"), "a sentence about the server")
        driver.find_element("id", "start").click()
        until(lambda: "does not answer" in text(driver, "problem"), "a sentence about no answer")
    with CallProcess("--device", "cpu", port=port) as second:
        driver.find_element("id", "start").click()
        until(lambda: page(driver, "neuralcodecCall.state.shown") > 2, "pictures again")
        assert text(driver, "problem") == ""
        stop(driver, second.address)
        assert second.stop() == "" and second.process.returncode == 0
    errors(driver)


def test_without_a_camera_the_page_says_what_to_do_and_takes_a_film(
    call: CallProcess, film: Path, tmp_path: Path
) -> None:
    with chromium(None) as browser:
        browser.get(call.address)
        browser.find_element("id", "start").click()
        said = until(lambda: text(browser, "problem"), "a sentence")
        assert "No camera was found" in said or "The camera was refused" in said
        assert page(browser, "document.getElementById('start').disabled") is False
        (tmp_path / "notes.mp4").write_text("no film")
        with wave.open(str(tmp_path / "voice.wav"), "wb") as voice:
            voice.setparams((1, 2, 8000, 0, "NONE", ""))
            voice.writeframes(bytes(16000))
        for name in ("notes.mp4", "voice.wav"):
            browser.find_element("id", "film").send_keys(str(tmp_path / name))
            until(lambda name=name: f"{name} has no picture" in text(browser, "problem"), "a sentence about the film")
            assert page(browser, "document.getElementById('start').disabled") is False
        browser.find_element("id", "film").send_keys(str(film))
        until(lambda: page(browser, "neuralcodecCall.state.shown") > 2, "the film is coded")
        assert text(browser, "problem") == ""
        stop(browser, call.address)
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True})  # fmt: skip
        assert page(browser, "document.documentElement.scrollWidth") <= 390  # nothing to scroll sideways on a phone


LATE_CAMERA = """
const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
window.tracks = [];
navigator.mediaDevices.getUserMedia = async (wanted) => {
  const allowed = await new Promise((resolve) => { window.answer = resolve; });
  if (!allowed) throw new DOMException("no", "NotAllowedError");
  const stream = await open(wanted);
  tracks.push(...stream.getTracks());
  return stream;
};
"""
ENDED = "tracks.length === 1 && tracks[0].readyState === 'ended'"
LATE_ANSWER = """
const send = window.fetch.bind(window);
window.answer = null;
window.fetch = async (address, ...rest) => {
  const response = await send(address, ...rest);
  if (address === "/offer" && !window.answer) await new Promise((resolve) => { window.answer = resolve; });
  return response;
};
"""


def test_what_an_earlier_start_waited_for_comes_too_late(driver: Any, call: CallProcess, film: Path) -> None:
    """A film is picked while the browser asks for the camera, and while the server answers."""

    def take_film() -> None:
        shown = page(driver, "neuralcodecCall.state.shown")
        driver.find_element("id", "film").send_keys(str(film))
        until(lambda: page(driver, "neuralcodecCall.state.shown") > shown + 2, "the film is coded")

    for allowed in ("true", "false"):
        driver.get(call.address)
        driver.execute_script(LATE_CAMERA)
        driver.find_element("id", "start").click()
        take_film()
        driver.execute_script(f"answer({allowed})")
        if allowed == "true":
            until(lambda: page(driver, ENDED), "nobody sees the camera")
        time.sleep(0.5)
        assert (calls(call.address), text(driver, "start"), text(driver, "problem")) == (1, "Stop", "")
        stop(driver, call.address)
    driver.get(call.address)
    driver.execute_script(LATE_ANSWER)
    driver.find_element("id", "start").click()
    until(lambda: page(driver, "window.answer !== null"), "the camera's call has been answered")
    take_film()
    assert calls(call.address) == 2
    driver.execute_script("answer()")
    until(lambda: calls(call.address) == 1, "the server is told that nobody wanted the first")
    assert (text(driver, "start"), text(driver, "problem")) == ("Stop", "")
    stop(driver, call.address)
    assert errors(driver, call.address) == []


@pytest.mark.skipif(not ORT, reason="NEURALCODEC_ORT_WEB does not name onnxruntime-web's dist folder")
def test_a_gpu_draws_what_webassembly_draws(portrait_clip: list[Array]) -> None:
    """The software that Chromium offers as a GPU takes minutes for one picture of a turned head."""
    encoder = nc.Encoder(4, time_base=Fraction(1, 25), threads=1)
    sent = [list(bytes(packet)) for packet in encoder.encode(portrait_clip[0], 0)]
    flags = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
    with CallProcess("--ort", ORT) as call, chromium(None, flags=flags) as driver:
        driver.get(call.address)
        driver.execute_script(DRAW_BY_BOTH, sent)
        until(lambda: page(driver, "failed || drawn.length === 2"), "both pictures", 600)
        assert page(driver, "failed") == ""
        found = {by: np.reshape(picture, (256, 256, 4))[..., :3] for by, picture in page(driver, "drawn")}
    by_gpu, by_cpu = found["WebGPU"], found["WebAssembly"]
    assert 0 < np.abs(by_gpu - by_cpu).mean() < 2, "floats beside 8 bits"
