"""Does a head turn as far as it is told, and is it still the same person? What the paper's Tables 2 to 4 ask.

``python -m benchmarks.free_view --clips DIR --json benchmarks/results/free_view.json --pictures DIR``; needs the extra
``faces``. Without --clips: the demo's moving portrait. ``--parts`` runs some of the questions and keeps the others' old
answers in the JSON file:

redirect   requests of one axis, and random ones within 20 degrees of yaw, 15 of pitch and 20 of roll: angle reached,
           person kept. Also the most turned frame of each clip made to face the camera.
back       turn, take the picture for a new reference, let the codec estimate it, turn back: PSNR against not turning.
transfer   each clip drives the first picture of the next one through the whole codec (benchmarks.driving).
smooth     the one-euro filter, on and off, through the whole codec (benchmarks.driving).
cost       time of a changed view beside the time of rendering, and how much of an iris's movement the pack shows.

Sources are uncoded frames, so that the figures are the renderer's and not the still coder's. Angles and persons are
judged by dlib (benchmarks.pose, benchmarks.faces), which no network of ours has met; its own error of some 3 degrees a
turn is in every angle. With ``--landmarks WEIGHTS`` 3DDFA gives a second opinion, which is not independent: the
renderer was trained with a loss on its features.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import clips, driving, faces, pose, report
from benchmarks.clips import Array
from neuralcodec import View, load_pack
from neuralcodec.gaze import EYES, POINTS, eye_contact
from neuralcodec.inference import Inference, ReferenceFeatures
from neuralcodec.motion import MotionParams, rotation_matrix
from neuralcodec.quality import psnr
from neuralcodec.view import ViewControl, ViewRange

PARTS = ("redirect", "back", "transfer", "smooth", "cost")
AXES = {"yaw": (10, 20, 30), "pitch": (10, 20), "roll": (20,)}
BOX = (20.0, 15.0, 20.0)  # yaw, pitch, roll of the random requests
RANDOM = 6  # of them for each source
NEAR = 15.0  # degrees: what the paper counts as the angle reached
BACK = (View(yaw=10), View(yaw=-10), View(yaw=20), View(yaw=-20), View(pitch=10), View(pitch=-10))
FREE = ViewRange(90, 90, 90, 1, 1)  # no clamp: the figures are there to choose one


@dataclass(frozen=True)
class Source:
    """One picture to turn: its features, and what the outside networks see in it."""

    clip: str
    picture: Array
    reference: ReferenceFeatures
    seen: Sight

    @property
    def motion(self) -> MotionParams:
        return self.reference.estimate.motion


@dataclass(frozen=True)
class Sight:
    """rotation (3, 3) and identity (128,) of one picture by dlib; second: rotation by 3DDFA, when asked for."""

    rotation: Array
    identity: Array
    second: Array | None
    box: Any
    found: bool  # else looked at where the face was before


class Eyes:
    """The outside networks."""

    def __init__(self, weights: Path | None) -> None:
        self._meter = None
        if weights is not None:
            from benchmarks.landmarks import Meter

            self._meter = Meter(weights)

    def look(self, picture: Array, before: Sight | None = None) -> Sight | None:
        box = faces._detect(picture)
        if box is None and before is None:
            return None
        used = before.box if box is None and before else box
        landmarks = faces._look([picture], [used]).landmarks[0]
        second = None
        if self._meter is not None:
            second = _FLIP @ self._meter._follow([picture])[1].rotations[0].T @ _FLIP
        return Sight(pose.rotation(landmarks), faces._recognise([picture], [used])[0], second, used, box is not None)


_FLIP = np.diag([1.0, -1.0, -1.0])  # 3DDFA's y is up and its z toward the camera, and its points are columns


def sources(footage: Sequence[clips.Clip], networks: Inference, eyes: Eyes) -> list[Source]:
    """The first frame of each clip, where dlib finds the face."""
    found = []
    for clip in footage:
        picture = clip.frames[0]
        seen = eyes.look(picture)
        if seen is not None:
            found.append(Source(clip.name, picture, networks.reference(picture), seen))
    return found


# --- redirect --------------------------------------------------------------------------------------------------------


def requests(rng: np.random.Generator) -> list[tuple[str, View]]:
    """(name, view): every single axis to both sides, then the random ones, named "random"."""
    single = [(f"{axis} {turn:+d}", View(turn * (axis == "yaw"), turn * (axis == "pitch"), turn * (axis == "roll")))
              for axis, sizes in AXES.items() for size in sizes for turn in (-size, size)]  # fmt: skip
    drawn = rng.uniform(-1, 1, (RANDOM, 3)) * BOX
    return [*single, *(("random", View(yaw, pitch, roll)) for yaw, pitch, roll in drawn.tolist())]


def redirect(source: Source, networks: Inference, eyes: Eyes, seed: int) -> list[dict[str, Any]]:
    """One row for each request: angle error, and distance of identities, between the source and its turned picture."""
    rows = []
    for name, view in requests(np.random.default_rng(seed)):
        turned = ViewControl(FREE).apply(view, source.motion, source.motion, 0.0).motion
        seen = eyes.look(networks.render(source.reference, turned), source.seen)
        assert seen is not None
        wanted = rotation_matrix(view.yaw, view.pitch, view.roll)
        row = {
            "clip": source.clip,
            "request": name,
            "error": pose.angle(wanted.T @ source.seen.rotation.T @ seen.rotation),
            "reached": pose.angle(source.seen.rotation.T @ seen.rotation) / pose.angle(wanted),
            "pair": (source.seen.identity, seen.identity),
            "found": seen.found,
        }
        if seen.second is not None and source.seen.second is not None:
            row["error_3ddfa"] = pose.angle(wanted.T @ source.seen.second.T @ seen.second)
        rows.append(row)
    return rows


def frontalize(clip: clips.Clip, networks: Inference, eyes: Eyes) -> dict[str, Any] | None:
    """The clip's most turned frame (of every tenth, by our motion network) facing the camera."""
    turned: list[tuple[float, Array]] = []
    box = networks.reference(clip.frames[0]).estimate.box
    for frame in clip.frames[::10]:
        estimate = networks.motion(frame, box)
        box = estimate.box
        turned.append((pose.angle(estimate.motion.rotation), frame))
    frame = max(turned, key=lambda item: item[0])[1]
    before = eyes.look(frame)
    if before is None:
        return None
    reference = networks.reference(frame)
    motion = reference.estimate.motion
    shown = ViewControl(networks.pack.view_range).apply(View(absolute=True), motion, motion, 0.0)
    after = eyes.look(networks.render(reference, shown.motion), before)
    assert after is not None
    return {
        "clip": clip.name,
        "before": pose.angle(before.rotation),
        "error": pose.angle(after.rotation),
        "clamped": shown.clamped,
        "pair": (before.identity, after.identity),
    }


def similarity(pairs: Sequence[tuple[Array, Array]], centre: Array) -> Array:
    """Cosines of identities after the mean face is taken off (see faces.centred_similarity)."""
    a, b = (np.array([pair[i] for pair in pairs]) - centre for i in (0, 1))
    return np.asarray((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)))


def summary(rows: Sequence[dict[str, Any]], centre: Array | None) -> dict[str, Any]:
    """Means of angle errors and identities; shares of the paper's three columns."""
    errors = np.array([row["error"] for row in rows])
    distances = np.array([np.linalg.norm(row["pair"][0] - row["pair"][1]) for row in rows])
    same, near = distances < faces.SAME_PERSON, errors <= NEAR
    result = {
        "pictures": len(rows),
        "angle_error": float(errors.mean()),
        "identity_distance": float(distances.mean()),
        "identity_kept": float(same.mean()),
        "angle_reached": float(near.mean()),
        "both": float((same & near).mean()),
    }
    if centre is not None:
        result["identity_similarity"] = float(similarity([row["pair"] for row in rows], centre).mean())
    for name in ("reached", "error_3ddfa", "found", "before", "clamped"):
        if name in rows[0]:
            result[name] = float(np.mean([row[name] for row in rows]))
    return result


def run_redirect(
    footage: Sequence[clips.Clip], networks: Inference, eyes: Eyes, pictures: Path | None, bar: Any
) -> dict[str, Any]:
    known = sources(footage, networks, eyes)
    centre = np.mean([s.seen.identity for s in known], axis=0) if len({s.clip for s in known}) > 3 else None
    rows, fronts = [], []
    for index, source in enumerate(bar(known, "redirect")):
        rows += redirect(source, networks, eyes, index)
        if pictures is not None:
            _draw(pictures / f"turned-{source.clip}.png", source, networks)
    for clip in bar(footage, "frontalize"):
        fronts += [row for row in (frontalize(clip, networks, eyes),) if row]
    names = list(dict.fromkeys(row["request"] for row in rows))
    per_clip = {
        name: summary([r for r in rows if r["clip"] == name and r["request"] == "random"], centre)
        for name in dict.fromkeys(row["clip"] for row in rows)
    }
    return {
        "requests": {name: summary([r for r in rows if r["request"] == name], centre) for name in names},
        "frontal": summary(fronts, centre),
        "clips": per_clip,
    }


def _draw(path: Path, source: Source, networks: Inference) -> None:
    views = [[View(yaw, pitch) for yaw in (-30, -15, 0, 15, 30)] for pitch in (-15, 0, 15)]
    rendered = [[networks.render(source.reference, source.motion.turned(view)) for view in row] for row in views]
    report.sheet(path, [[source.picture, *row] for row in rendered])


# --- back, cost ------------------------------------------------------------------------------------------------------


def run_back(footage: Sequence[clips.Clip], networks: Inference, bar: Any) -> dict[str, Any]:
    values: dict[str, list[float]] = {}
    for clip in bar(footage, "back"):
        reference = networks.reference(clip.frames[0])
        motion = reference.estimate.motion
        straight = networks.render(reference, motion)
        for view in BACK:
            again = networks.reference(networks.render(reference, motion.turned(view)))
            returned = again.estimate.motion.turned(View(-view.yaw, -view.pitch))
            values.setdefault(f"yaw {view.yaw:+g} pitch {view.pitch:+g}", []).append(
                psnr(straight, networks.render(again, returned))
            )
    return {name: float(np.mean(found)) for name, found in values.items()}


def run_cost(footage: Sequence[clips.Clip], networks: Inference, bar: Any) -> dict[str, float]:
    """Milliseconds: medians over frames of several clips, views and renders in turn, so that a busy machine is even."""
    spent: dict[str, list[float]] = {"render": [], "view": [], "eye_contact": []}
    gaze: list[float] = []
    for clip in bar(footage[:8], "cost"):
        reference = networks.reference(clip.frames[0])
        motion = reference.estimate.motion
        control = ViewControl(networks.pack.view_range)
        for index in range(20):
            marks = [time.perf_counter()]
            seen = control.apply(View(10 + index % 7, -5), motion, motion, index / 25).motion
            marks.append(time.perf_counter())
            picture = networks.render(reference, seen)
            marks.append(time.perf_counter())
            if networks.pack.keypoints == POINTS:
                eye_contact(picture, seen, motion, motion, reference.canonical, 0.2)
            marks.append(time.perf_counter())
            for name, elapsed in zip(("view", "render", "eye_contact"), np.diff(marks), strict=True):
                spent[name].append(1000 * elapsed)
        if networks.pack.keypoints == POINTS:
            gaze.append(iris_share(reference, networks))
    result = {f"{name}_ms": float(np.median(times)) for name, times in spent.items()}
    result["share_of_render"] = result["view_ms"] / result["render_ms"]
    result["share_with_eye_contact"] = (result["view_ms"] + result["eye_contact_ms"]) / result["render_ms"]
    if gaze:
        result["gaze"] = float(np.clip(np.median(gaze), 0, 1))
    return result


def iris_share(reference: ReferenceFeatures, networks: Inference) -> float:
    """How much of a sideways movement of the iris keypoints shows in the picture: optical flow (Lucas and Kanade, one
    window an eye) between irises moved a tenth of an eye width to both sides, over what was asked."""
    motion, shares = reference.estimate.motion, []
    for outer, inner, _, _, iris in EYES:
        face = reference.canonical + motion.delta
        width = float(np.linalg.norm(face[outer] - face[inner]))
        moved = []
        for sign in (-1, 1):
            delta = np.array(motion.delta)
            delta[iris, 0] += 0.1 * sign * width
            moved.append(networks.render(reference, replace(motion, delta=delta)).mean(axis=2))
        half = moved[0].shape[0] / 2
        x, y = ((motion.keypoints(reference.canonical)[iris, :2] + 1) * half).round().astype(int)
        reach = max(2, int(0.25 * width * motion.scale * half))
        window = np.s_[max(y - reach, 1) : y + reach + 1, max(x - reach, 1) : x + reach + 1]
        slope = np.gradient((moved[0] + moved[1]) / 2, axis=1)[window]
        step = (moved[0] - moved[1])[window]  # positive where what was there has moved to the right
        asked = 0.2 * width * motion.scale * half
        shares.append(float((slope * step).sum() / max((slope**2).sum(), 1e-6) / asked))
    return float(np.mean(shares))


# --- the table -------------------------------------------------------------------------------------------------------


def table(found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Figure, bar, measured, verdict."""
    rows: list[tuple[str, str, str, str]] = []

    def row(figure: str, bar: str, value: str, good: bool | None = None) -> None:
        rows.append((figure, bar, value, "" if good is None else "pass" if good else "FAIL"))

    if "redirect" in found:
        box = found["redirect"]["requests"]["random"]
        row("pose error within 20 yaw, 15 pitch, 20 roll, degrees", "<= 4", f"{box['angle_error']:.1f}",
            box["angle_error"] <= 4)  # fmt: skip
        if "error_3ddfa" in box:
            row("  by 3DDFA (not independent)", "", f"{box['error_3ddfa']:.1f}")
        if "identity_similarity" in box:
            row("identity similarity to the reference", ">= 0.75", f"{box['identity_similarity']:.2f}",
                box["identity_similarity"] >= 0.75)  # fmt: skip
        row("identity distance (the same person: under 0.6)", "", f"{box['identity_distance']:.2f}")
        for name, of in (("redirection", box), ("frontalisation", found["redirect"]["frontal"])):
            both = of["both"]
            row(f"{name}: identity kept; angle within 15 degrees", "", f"{of['identity_kept']:.1%}; "
                f"{of['angle_reached']:.1%}")  # fmt: skip
            row(f"{name}: both", ">= 80 %", f"{both:.1%}", both >= 0.8)
        front = found["redirect"]["frontal"]
        row("frontalisation: degrees from the camera before; after", "",
            f"{front['before']:.1f}; {front['angle_error']:.1f}")  # fmt: skip
    if "back" in found:
        value = float(np.mean(list(found["back"].values())))
        row("turn and turn back, against not turning, dB", ">= 30", f"{value:.1f}", value >= 30)
    for name, of in found.get("transfer", {}).items():
        bar, passed = ("", None) if name == driving.OWN else (">= 0.8", of["expression"] >= 0.8)
        row(f"transfer, {name}: expression (landmark motion) correlation", bar, f"{of['expression']:.2f}", passed)
        row(f"transfer, {name}: mouth opening correlation, median clip", "", f"{of['mouth']:.2f}")
        row(f"transfer, {name}: identity distance to the avatar; kept", "", f"{of['identity_distance']:.2f}; "
            f"{of['identity_kept']:.1%}")  # fmt: skip
        row(f"transfer, {name}: pose error to the driver, degrees", "", f"{of['angle_error']:.1f}")
    if "smooth" in found:
        of = found["smooth"]
        row("smoothing: tremble of shown keypoints, calm half of frames, px", "",
            f"{of['tremble_off']:.3f} to {of['tremble_on']:.3f}")  # fmt: skip
        row("smoothing: PSNR, dB", "", f"{of['psnr_off']:.2f} to {of['psnr_on']:.2f}")
    if "cost" in found:
        share = found["cost"]["share_of_render"]
        row("cost of a changed view, of render time", "<= 5 %", f"{share:.2%}", share <= 0.05)
        row("  with eye contact", "", f"{found['cost']['share_with_eye_contact']:.2%}")
        if "gaze" in found["cost"]:
            row("iris movement that the renderer shows", "", f"{found['cost']['gaze']:.0%}")
    return rows


def by_request(found: dict[str, Any]) -> str:
    """One line for each single-axis request: what a pack's range should be chosen from."""
    rows = []
    for name, of in found["redirect"]["requests"].items():
        similar = f"{of['identity_similarity']:.2f}" if "identity_similarity" in of else "-"
        rows.append([name, f"{of['angle_error']:.1f}", f"{of['reached']:.0%}", similar, f"{of['identity_kept']:.0%}",
                     f"{of['both']:.0%}"])  # fmt: skip
    return report.markdown(["request", "error", "reached", "similarity", "identity kept", "both"], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.free_view", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=Path, help="a folder of video files; default: the demo's portrait")
    parser.add_argument("--pack", help="folder or name of a model pack; default the bundled one")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--frames", type=report.count, default=100, help="of each clip (default 100)")
    parser.add_argument("--every", type=report.count, default=1, metavar="N", help="only every N-th clip")
    parser.add_argument("--threads", type=report.count, default=2, help="network threads (default 2)")
    parser.add_argument("--landmarks", type=Path, metavar="WEIGHTS", help="3DDFA_V2 mb05 network: a second opinion")
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--pictures", type=Path, help="write sheets of turned heads into this folder")
    options = parser.parse_args(arguments)
    if faces.unavailable():
        print(faces.unavailable(), file=sys.stderr)
        return 1
    pack = load_pack(options.pack)
    networks, eyes = Inference(pack, device="cpu", threads=options.threads), Eyes(options.landmarks)
    footage = _footage(options.clips, options.frames, pack.size)[:: options.every]
    machine = report.machine()
    found: dict[str, Any] = {}
    runs: dict[str, Any] = {}
    if options.json is not None and options.json.is_file() and set(options.parts) != set(PARTS):
        old = report.load(options.json, "figures", "runs")
        found, runs = old["figures"], old["runs"]
    hashes = {clip.name: clip.sha256 for clip in footage}
    run = {"machine": machine, "pack": pack.id.hex(), "clips": hashes, "frames": options.frames}
    with report.progress() as progress:

        def bar(items: Sequence[Any], title: str) -> Any:
            return progress.track(items, description=title)

        ask: dict[str, Callable[[], dict[str, Any]]] = {
            "redirect": lambda: run_redirect(footage, networks, eyes, options.pictures, bar),
            "back": lambda: run_back(footage, networks, bar),
            "transfer": lambda: driving.transfer(footage, pack, options.threads, options.pictures, bar),
            "smooth": lambda: driving.smooth(footage, pack, options.threads, bar),
            "cost": lambda: run_cost(footage, networks, bar),
        }
        for part in options.parts:
            found[part], runs[part] = ask[part](), run
            if options.json is not None:  # after each part: a run cut short keeps what it has
                report.save(options.json, {"table": table(found), "figures": found, "runs": runs})
    rows = table(found)
    print(f"{len(footage)} clips, pack {pack.name} {pack.version} {pack.id.hex()}. {report.busy(machine)}\n")
    print(report.markdown(("figure", "bar", "measured", ""), rows))
    if "redirect" in found:
        print("\n" + by_request(found))
    return int(any(verdict == "FAIL" for *_, verdict in rows))


def _footage(folder: Path | None, frames: int, size: int) -> list[clips.Clip]:
    if folder is not None:
        return [clips.read(path, limit=frames, size=size) for path in clips.find(folder)]
    from neuralcodec.demo import moving_portrait

    return [clips.from_frames("astronaut", list(moving_portrait(frames / clips.FPS)))]


if __name__ == "__main__":
    report.run(main)
