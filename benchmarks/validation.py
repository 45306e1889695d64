"""Does the codec hold its promises on faces it never saw? One table of figures against their bars, and pictures.

``python -m benchmarks.validation --clips DIR --json OUT.json --pictures DIR``. Without --clips: the demo's moving
portrait, which is one photograph warped and says nothing about real film. ``--render-only`` leaves the bits out: the
first frame as it is for a reference, motion as the network gives it. ``--shrunk N`` leaves the codec out, too: the
originals themselves, N times smaller and back, say what the figures make of pictures that are merely soft.

Streams are files as ``neuralcodec encode`` makes them: 8 frames of motion share a packet and wait for 12 more. With
--call none waits for another, unless --lookahead and --frames-per-packet let them.

The freeze baseline repeats the first decoded reference (with --render-only: the first frame). Easy and hard halves: the
clips above and below the median of its PSNR. Pictures: original | ours | freeze | difference of the first two, one row
per chosen frame; and worst-FIGURE.png, the worst frames by a figure, no two of one clip: first reference | original |
ours | difference. Face figures (landmarks, mouth, blinks, jitter on every frame, identity once a second) come with the
extra ``faces``, and so do those of open mouths, closed eyes and far cheeks. Frames with hands are labelled by eye
(benchmarks/groups.py, which also splits all figures by group).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import clips, faces, groups, metrics, ours, regions, report
from neuralcodec.encoder import LOOKAHEAD_MAX, SHARE_MAX
from neuralcodec.errors import NeuralCodecError
from neuralcodec.face import resize
from neuralcodec.quality import psnr
from neuralcodec.rate import WINDOW_SECONDS

IDENTITY_EVERY = clips.FPS  # frames
ROWS = 4  # frames of a contact sheet, evenly spaced, the last one included
WORST = 6  # clips on a sheet of failures
SHRUNK_MAX = 16
PEOPLE = 5  # that a mean face needs
TEN_SECONDS = 10 * clips.FPS
SPOTS = {
    "mouth": "inside open mouths",
    "eyes": "around closed eyes",
    "far cheek": f"far cheek, yaw over {regions.TURNED:.0f} degrees",
    "hands": "whole picture while a hand shows",
}

Row = tuple[str, str, str, str]  # figure, bar, measured, verdict


class Pictures:
    """A folder of PNGs: a contact sheet per clip, and for each figure the worst frame of the ``WORST`` worst clips."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.worst: dict[str, list[tuple[float, tuple[Any, ...]]]] = {}

    def sheet(self, clip: clips.Clip, frames: Sequence[Any], freeze: Any) -> None:
        chosen = np.linspace(0, len(frames) - 1, min(ROWS, len(frames))).round().astype(int)
        rows = [(clip.frames[i], frames[i], freeze, _difference(clip.frames[i], frames[i])) for i in chosen]
        report.sheet(self.folder / f"{clip.name}.png", rows)

    def failures(
        self, clip: clips.Clip, frames: Sequence[Any], freeze: Any, scores: Mapping[str, tuple[Any, Sequence[int]]]
    ) -> None:
        """scores: of each figure its values, more is better, and the frames that have one."""
        for figure, (values, indices) in scores.items():
            at = int(np.argmin(values))
            before, after = clip.frames[indices[at]], frames[indices[at]]
            rows = [*self.worst.get(figure, []), (values[at], (freeze, before, after, _difference(before, after)))]
            self.worst[figure] = sorted(rows, key=lambda row: row[0])[:WORST]

    def save_failures(self) -> None:
        for figure, rows in self.worst.items():
            report.sheet(self.folder / f"worst-{figure.replace(' ', '-')}.png", [row for _, row in rows])


def measure(clip: clips.Clip, options: argparse.Namespace, pictures: Pictures | None, meter: Any) -> dict[str, Any]:
    """One clip through encoder and decoder."""
    sent = ours.send(
        clip, kbps=options.kbps, pack=options.pack, device=options.device, threads=options.cores,
        **_way(options),
    )  # fmt: skip
    freeze = ours.first_reference(sent.file, clip.size[0])
    digest, motions = ours.follow_symbols(sent.file, _pack_folder(options.pack) / "tables.json")
    strayed = sum(not (a.flat() == b.flat()).all() for a, b in zip(motions, sent.motions, strict=False))
    return {
        **_quality(clip, sent.frames, freeze, pictures, meter),
        "kbps": sent.kbps,
        "seconds": clip.seconds,
        "kbps_first_10_s": sent.kbps_until(TEN_SECONDS),
        "bytes_by_kind": sent.bytes_by_kind,
        "motion_payload": float(np.mean(sent.motion_payload)),
        "motion_payload_p95": float(np.percentile(sent.motion_payload, 95)),
        "motion_packet": float(np.mean(sent.motion_bytes)),
        "references": sent.references,
        "keypoint_error_px": sent.keypoint_error_px,
        "frames_missing": sent.missing,
        "frames_strayed": strayed,
        "encode_ms": float(np.mean(sent.encode_ms)),
        "encode_ms_median": float(np.median(sent.encode_ms)),
        "decode_ms": float(np.sum(sent.decode_ms)) / len(clip.frames),
        "provider": sent.provider,
        "symbols": digest,
        "symbols_again": ours.follow_symbols(sent.file, _pack_folder(options.pack) / "tables.json")[0],
        "symbols_elsewhere": _in_process("symbols", sent.file, options.pack),
    }


def measure_render(
    clip: clips.Clip, options: argparse.Namespace, pictures: Pictures | None, meter: Any
) -> dict[str, Any]:
    """One clip through the networks alone."""
    frames = ours.render(clip, pack=options.pack, device=options.device, threads=options.cores)
    return _quality(clip, frames, clip.frames[0], pictures, meter)


def measure_shrunk(
    clip: clips.Clip, options: argparse.Namespace, pictures: Pictures | None, meter: Any
) -> dict[str, Any]:
    """One clip as it is, made ``options.shrunk`` times smaller and back."""
    width, height = clip.size
    small = (round(width / options.shrunk), round(height / options.shrunk))
    frames = [resize(resize(frame, *small), width, height) for frame in clip.frames]
    return _quality(clip, frames, frames[0], pictures, meter)


def _quality(
    clip: clips.Clip, frames: Sequence[Any], freeze: Any, pictures: Pictures | None, meter: Any
) -> dict[str, Any]:
    still = [freeze] * len(frames)
    result: dict[str, Any] = {
        "clip": clip.name,
        "sha256": clip.sha256,
        "frames": len(frames),
        "psnr": metrics.mean_psnr(clip.frames, frames),
        "ms_ssim": metrics.mean_ms_ssim(clip.frames, frames),
        "freeze_psnr": metrics.mean_psnr(clip.frames, still),
        "freeze_ms_ssim": metrics.mean_ms_ssim(clip.frames, still),
    }
    result["gain"] = result["psnr"] - result["freeze_psnr"]
    result |= metrics.temporal(clip.frames, frames)
    if meter is not None:
        from benchmarks import landmarks

        result["head"] = landmarks.distances(*meter.look(clip.frames, frames))
    tracks = None if faces.unavailable() else faces.tracks(clip, frames)
    track = None if tracks is None else tracks[0]
    found = regions.spots(clip.frames, frames, freeze, track, groups.labels().hands.get(clip.name, ()))
    result["spots"] = {name: spot.figures() for name, spot in found.items()}
    result["still"] = regions.still(clip.frames, frames, track)
    if tracks is not None:
        result["look"] = regions.look(clip.frames, tracks[0])
        result["face"] = {**faces.distances(*tracks), **faces.tremble(*tracks)}
        result["identities"] = faces.identities(clip, frames, every=IDENTITY_EVERY)
    if pictures is not None:
        every, apart = range(len(frames)), np.linalg.norm
        scores: dict[str, tuple[Any, Sequence[int]]] = {
            "picture": (list(map(psnr, clip.frames, frames)), every),
            **{name: (spot.psnr, spot.frames) for name, spot in found.items()},
        }
        if tracks is not None:
            scores["landmarks"] = (-apart(tracks[0].landmarks - tracks[1].landmarks, axis=2).mean(axis=1), every)
        if result.get("identities") is not None:
            looked_at = clips.looked_at(len(frames), IDENTITY_EVERY)
            scores["identity"] = (-apart(np.subtract(*result["identities"]), axis=1), looked_at)
        pictures.sheet(clip, frames, freeze)
        pictures.failures(clip, frames, freeze, scores)
    return result


def _difference(a: Any, b: Any) -> Any:
    """Absolute, doubled so that it can be seen."""
    return np.minimum(2 * np.abs(a.astype(np.int16) - b), 255).astype(np.uint8)


def _add_similarity(results: Sequence[dict[str, Any]]) -> None:
    """Identity similarity of each clip, from the numbers of all of them: see faces.centred_similarity."""
    seen = [r for r in results if r.get("identities") is not None]
    pairs = [r["identities"] for r in seen]
    if len(pairs) >= PEOPLE:
        for r, similarity in zip(seen, faces.centred_similarity(pairs), strict=True):
            r["face"]["identity"] = similarity
    for r in seen:
        r["face"]["identity_distance"] = float(np.linalg.norm(np.subtract(*r.pop("identities")), axis=1).mean())


def table(results: Sequence[dict[str, Any]], whole: dict[str, Any]) -> list[Row]:
    """The figures issue by issue: mean over clips unless said otherwise."""

    def mean(key: str) -> float:
        return float(np.mean([r[key] for r in results]))

    rows: list[Row] = []

    def row(figure: str, bar: str, measured: str, good: bool | None = None) -> None:
        rows.append((figure, bar, measured, "" if good is None else "pass" if good else "FAIL"))

    if "kbps" in results[0]:
        payload, rate, error = mean("motion_payload"), mean("kbps"), mean("keypoint_error_px")
        long = [r["kbps_first_10_s"] for r in results if r["kbps_first_10_s"] is not None]
        row("motion payload, bytes a frame", "<= 6", f"{payload:.2f}", payload <= 6)
        row(
            "  95th percentile; with packet header",
            "",
            f"{mean('motion_payload_p95'):.1f}; {mean('motion_packet'):.2f}",
        )
        if long:
            ten = float(np.mean(long))
            row(f"whole file, first 10 s, kbit/s ({len(long)} clips that long)", "<= 5", f"{ten:.2f}", ten <= 5)
        row("whole file, whole clip, kbit/s", "", f"{rate:.2f}")
        row("keypoint error by quantization, px of 256", "< 0.5", f"{error:.2f}", error < 0.5)
    gain, better = mean("gain"), float(np.mean([r["gain"] > 0 for r in results]))
    psnr_bar, ssim_bar = (26.0, 0.90) if "kbps" in results[0] else (23.3, 0.82)
    psnr, ssim, frozen = mean("psnr"), mean("ms_ssim"), mean("freeze_ms_ssim")
    row("PSNR, dB", f">= {psnr_bar:.1f}", f"{psnr:.2f}", psnr >= psnr_bar)
    row("MS-SSIM (freeze)", f">= {ssim_bar:.2f}", f"{ssim:.3f} ({frozen:.3f})", ssim >= ssim_bar)
    row("PSNR gain over freeze, dB", ">= +3.8", f"{gain:+.2f}", gain >= 3.8)
    row("share of clips better than freeze", "100 %", f"{better:.0%}", better == 1)
    for name, half in zip(("easy", "hard"), halves(results), strict=True):
        if half:
            level, above = (float(np.mean([r[key] for r in half])) for key in ("psnr", "gain"))
            row(f"  {name} half ({len(half)} clips): PSNR; gain", "", f"{level:.2f}; {above:+.2f}")
    rows += face_rows([r["face"] for r in results if "face" in r])
    rows += spot_rows(results)
    row("picture jitter over the original's", "", f"{mean('jitter'):.2f}")
    heads = [r["head"] for r in results if "head" in r]
    if heads:
        row("head turn error, degrees (3DDFA)", "", f"{np.mean([h['pose_degrees'] for h in heads]):.2f}")
    if "kbps" in results[0]:
        cores = f"{whole['machine']['cores_usable']} cores"
        encode, decode = 1000 / mean("encode_ms"), 1000 / mean("decode_ms")
        row(f"encode, fps on {cores}", ">= 60", f"{encode:.0f}", encode >= 60)
        row(f"decode, fps on {cores}", ">= 30", f"{decode:.0f}", decode >= 30)
        row("import time, ms (median of 5)", "< 150", f"{whole['import_ms']:.0f}", whole["import_ms"] < 150)
        row("memory of a decode, MB (peak)", "< 600", f"{whole['decode_mb']:.0f}", whole["decode_mb"] < 600)
        row("pack size, MB", "<= 12", f"{whole['pack_mb']:.1f}", whole["pack_mb"] <= 12)
        same = all(r["symbols"] == r["symbols_again"] == r["symbols_elsewhere"] for r in results)
        row("symbols, decoded twice and by another process", "identical", "identical" if same else "differ", same)
        strayed, missing = (sum(r[key] for r in results) for key in ("frames_strayed", "frames_missing"))
        row("frames whose motion left the integer path", "0", str(strayed), strayed == 0)
        row("frames that never came", "0", str(missing), missing == 0)
    return rows


def face_rows(found: Sequence[dict[str, Any]]) -> list[Row]:
    """What the independent face networks say, over clips that show a face."""
    rows: list[Row] = []
    if not found:
        return rows

    def row(figure: str, bar: str, measured: str, good: bool) -> None:
        rows.append((figure, bar, measured, "pass" if good else "FAIL"))

    landmarks = float(np.mean([f["landmark_px"] for f in found]))
    row("landmark distance, px of 256 (dlib)", "<= 2.0", f"{landmarks:.2f}", landmarks <= 2.0)
    mouth, blinks = faces.mouth_share(found), faces.blink_agreement(found)
    row("mouth opening error, of its range", "<= 15 %", f"{mouth:.1%}", mouth <= 0.15)
    closed, shown = sum(f["closed"] for f in found), sum(f["closed_shown"] for f in found)
    row("blink agreement (never blinking: 50 %)", ">= 90 %", f"{blinks:.1%}", blinks >= 0.9)
    rows.append(("  frames with closed eyes; shown closed", "", f"{closed}; {shown}", ""))
    identity = [f["identity"] for f in found if "identity" in f]
    if identity:
        similarity = float(np.mean(identity))
        row("identity similarity (dlib, two people: 0)", ">= 0.85", f"{similarity:.2f}", similarity >= 0.85)
    distance = np.mean([f["identity_distance"] for f in found if "identity_distance" in f])
    rows.append(("  identity distance (same person < 0.6)", "", f"{distance:.2f}", ""))
    pairs = [(f["tremble_original"], f["tremble"]) for f in found if "tremble" in f]
    if pairs:
        own, ours_ = np.mean(pairs, axis=0)
        row("landmark jitter of a still head, px; the original's", "<= its", f"{ours_:.2f}; {own:.2f}", ours_ <= own)
    return rows


def spot_rows(results: Sequence[dict[str, Any]]) -> list[Row]:
    """The places where talking heads go wrong, over the clips that show them; no bar was set for them."""
    rows: list[Row] = []
    for name, label in SPOTS.items():
        found = [r["spots"][name] for r in results if name in r.get("spots", {})]
        if found:
            ours_, frozen = (np.mean([f[key] for f in found]) for key in ("psnr", "freeze_psnr"))
            shown = f"{len(found)} clips, {sum(f['frames'] for f in found)} frames"
            rows.append((f"{label}, dB; freeze ({shown})", "", f"{ours_:.2f}; {frozen:.2f}", ""))
    found = [r["still"] for r in results if r.get("still")]
    for key, label in (("change", "median"), ("jump", "99th percentile")) if found else ():
        ours_, own = (np.mean([f[k] for f in found]) for k in (key, f"{key}_original"))
        figure = f"still surroundings, change a frame, 8-bit steps ({label}); the original's"
        rows.append((figure, "", f"{ours_:.2f}; {own:.2f}", ""))
    return rows


def halves(results: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Easy and hard clips by the PSNR of the freeze baseline; the middle one of an odd number is easy."""
    ordered = sorted(results, key=lambda r: -r["freeze_psnr"])
    middle = (len(ordered) + 1) // 2
    return ordered[:middle], ordered[middle:]


def per_clip(results: Sequence[dict[str, Any]]) -> str:
    """One line a clip, worst gain first."""
    head = ["clip", "frames", "PSNR", "freeze", "gain", "MS-SSIM"]
    coded = "kbps" in results[0]
    rows = []
    for r in sorted(results, key=lambda r: r["gain"]):
        row = [r["clip"], r["frames"], f"{r['psnr']:.2f}", f"{r['freeze_psnr']:.2f}", f"{r['gain']:+.2f}",
               f"{r['ms_ssim']:.3f}"]  # fmt: skip
        if coded:
            row += [f"{r['kbps']:.2f}", f"{r['motion_payload']:.1f}", r["references"]]
        if "face" in results[0]:
            face = r.get("face", {})
            keys = {"landmark_px": 2, "mouth_error": 3, "mouth_range": 3, "identity": 2}
            row += [f"{face[key]:.{digits}f}" if key in face else "" for key, digits in keys.items()]
        rows.append(row)
    head += ["kbit/s", "bytes", "references"] * coded
    head += ["landmarks, px", "mouth error", "mouth range", "identity"] * ("face" in results[0])
    return report.markdown(head, rows)


def import_ms() -> float:
    """Median over five fresh interpreters of the time `import neuralcodec` takes."""
    program = "import time; t = time.perf_counter(); import neuralcodec; print((time.perf_counter() - t) * 1000)"
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True) for _ in "12345"
    ]
    return float(np.median([float(run.stdout) for run in runs]))


def _way(options: argparse.Namespace) -> dict[str, Any]:
    """How streams are made, for `ours.send`."""
    if options.call:
        waits = {"lookahead": options.lookahead, "frames_per_packet": options.frames_per_packet}
        return {"window": options.window, **waits}
    return ours.STEADY if options.constant_rate else ours.FILE


def _in_process(what: str, file: bytes, pack: str | None) -> str:
    """Ask a second interpreter about a file: "symbols" (their digest) or "memory" (peak of a decode, MB)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.ncv")
        path.write_bytes(file)
        command = [sys.executable, "-m", "benchmarks.probe", what, str(path), str(_pack_folder(pack))]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _pack_folder(pack: str | None) -> Path:
    from neuralcodec import load_pack

    return load_pack(pack).folder


def load(options: argparse.Namespace) -> list[clips.Clip]:
    """The clips to run, by name order."""
    size = _pack_size(options.pack)
    if options.clips is None:
        from neuralcodec.demo import moving_portrait

        seconds = {} if options.frames is None else {"seconds": options.frames / clips.FPS}
        return [clips.from_frames("astronaut", list(moving_portrait(**seconds)))]
    paths = clips.find(options.clips) if options.clips.is_dir() else [options.clips]
    return [clips.read(path, limit=options.frames, size=size) for path in paths]


def _pack_size(pack: str | None) -> int:
    from neuralcodec import load_pack

    return load_pack(pack).size


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.validation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=Path, help="a video file or a folder of them; default: the demo's portrait")
    parser.add_argument("--pack", help="folder or name of a model pack; default the bundled one")
    parser.add_argument("--kbps", type=report.rate, default=4.0, help="target rate (default 4)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cores", type=report.count, default=2, help="processor cores and network threads (default 2)")
    parser.add_argument("--frames", type=report.count, help="first N frames of each clip")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--call", action="store_true", help="no frame waits for another; default: as files are made")
    way.add_argument("--constant-rate", action="store_true", help="files that keep the rate in any two seconds")
    parser.add_argument(
        "--window", type=report.window, default=WINDOW_SECONDS,
        help="with --call: seconds that keep the rate (default %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--lookahead", type=int, choices=range(LOOKAHEAD_MAX + 1), default=0, metavar="N",
        help="with --call: frames that motion waits (default 0)",
    )  # fmt: skip
    parser.add_argument(
        "--frames-per-packet", type=int, choices=range(1, SHARE_MAX + 1), default=1, metavar="N",
        help="with --call (default 1)",
    )  # fmt: skip
    parser.add_argument("--render-only", action="store_true", help="no bits: uncoded reference, unquantized motion")
    parser.add_argument("--shrunk", type=float, metavar="N", help="no codec: the originals N times smaller and back")
    parser.add_argument("--landmarks", type=Path, metavar="WEIGHTS", help="3DDFA_V2 mb05 network: adds head turns")
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--pictures", type=Path, help="write a contact sheet per clip, and of failures, here")
    options = parser.parse_args(arguments)
    if options.shrunk is not None and not 1 <= options.shrunk <= SHRUNK_MAX:
        parser.error(f"--shrunk is {options.shrunk:g}; expected 1 to {SHRUNK_MAX}, times smaller.")
    step, source = measure, f"{'a call' if options.call else 'files'} at {options.kbps:g} kbit/s"
    source += " in any two seconds" * options.constant_rate
    if options.render_only:
        step, source = measure_render, "render only: no bits"
    if options.shrunk is not None:
        step, source = measure_shrunk, f"no codec: originals {options.shrunk:g} times smaller and back"
    report.pin(options.cores)
    machine = report.machine()
    meter = None
    if options.landmarks is not None:
        from benchmarks.landmarks import Meter

        meter = Meter(options.landmarks)
    chosen = load(options)
    results: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    pictures = None if options.pictures is None else Pictures(options.pictures)
    with report.progress() as bar:
        task = bar.add_task("clips", total=len(chosen))
        for clip in chosen:
            bar.update(task, description=clip.name)
            try:
                results.append(step(clip, options, pictures, meter))
            except NeuralCodecError as problem:  # one bad clip is a result, not the end of the run
                failures[clip.name] = f"{type(problem).__name__}: {problem}"
            bar.advance(task)
    for name, sentence in failures.items():
        print(f"{name} failed: {sentence}", file=sys.stderr)
    if not results:
        return 1
    if faces.unavailable():
        print(faces.unavailable(), file=sys.stderr)
    _add_similarity(results)
    chosen_options = {k: v.name if isinstance(v, Path) else v for k, v in vars(options).items()
                      if k not in ("clips", "json", "pictures", "pack")}  # fmt: skip
    whole: dict[str, Any] = {"machine": machine, "options": chosen_options, "failures": failures}
    if step is measure:
        longest = max((clip for clip in chosen if clip.name not in failures), key=lambda clip: len(clip.frames))
        sent = ours.send(
            longest, kbps=options.kbps, pack=options.pack, device=options.device, threads=options.cores,
            **_way(options),
        )  # fmt: skip
        whole["import_ms"] = import_ms()
        pack = _pack_folder(options.pack)
        whole["pack_mb"] = sum(path.stat().st_size for path in pack.iterdir() if path.is_file()) / 1e6
        whole["decode_mb"] = float(_in_process("memory", sent.file, options.pack))
    rows = table(results, whole)
    rows.append(("clips that failed", "0", str(len(failures)), "FAIL" if failures else "pass"))
    if pictures is not None:
        pictures.save_failures()
    if options.json is not None:
        report.save(options.json, {**whole, "table": rows, "clips": results})
    print(
        f"{len(results)} clips, {sum(r['frames'] for r in results)} frames at 25 fps, {source}."
        f" {report.busy(machine)}\n"
    )
    print(report.markdown(("figure", "bar", "measured", ""), rows) + "\n")
    print(per_clip(results))
    return int(any(verdict == "FAIL" for *_, verdict in rows))


if __name__ == "__main__":
    report.run(main)
