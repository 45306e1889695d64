"""For whom does the codec work less well? The figures of a validation record by group of clips, without the codec.

``python -m benchmarks.groups benchmarks/results/validation.json``. Glasses, hands and the like were labelled by eye,
clip by clip, in ``val_groups.json`` beside this file (``--labels`` for other clips). How far a head turns and how light
its skin appears are measured (benchmarks/regions.py); records from before those figures need ``--clips DIR`` for them.

Every group stands beside all other clips. Clips differ in far more than one label, and twenty are few: a group of
fewer than ``FEWEST`` clips gets no comparison, and the others get an interval over clips, not a cause; one such
interval in twenty misses by chance.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import clips, comparison, faces, regions, report

LABELS = Path(__file__).with_name("val_groups.json")
FEWEST = 3  # clips in a group and beside it
LOOKED_AT = 5  # every so many frames, where the record does not say how a clip looks
TURNS = (20.0, 40.0)  # degrees of yaw
LIGHT, DARK = regions.SKIN["light"], regions.SKIN["tan"]  # degrees: light and above, below tan

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Labels:
    """names: what each label means. clips: the labels of each clip. hands: its (first, end) frames with a hand."""

    names: Mapping[str, str]
    clips: Mapping[str, Sequence[str]]
    hands: Mapping[str, Sequence[Sequence[int]]]


def labels(path: Path = LABELS) -> Labels:
    """Read a file of labels; SystemExit with one sentence when it is none."""
    found = report.load(path)
    try:
        unknown = {label for given in found["clips"].values() for label in given} - set(found["labels"])
        result = Labels(found["labels"], found["clips"], found["hands"])
    except (KeyError, TypeError, AttributeError):
        raise SystemExit(
            f'{path} is no file of labels: give one with "labels", "clips" and "hands" like {LABELS.name}.'
        ) from None
    if unknown:
        raise SystemExit(f'{path} uses {", ".join(sorted(unknown))} without saying under "labels" what it means.')
    return result


def groups(results: Sequence[Record], given: Labels) -> list[tuple[str, list[Record], list[Record]]]:
    """(name, clips of the group, all other clips of which the same is known)."""

    found: list[tuple[str, list[Record], list[Record]]] = []

    def split(name: str, known: Sequence[Record], member: Sequence[bool]) -> None:
        pairs = list(zip(known, member, strict=True))
        found.append((name, [r for r, inside in pairs if inside], [r for r, inside in pairs if not inside]))

    known = [r for r in results if r["clip"] in given.clips]
    for label, meaning in given.names.items():
        split(meaning, known, [label in given.clips[r["clip"]] for r in known])
    known = [r for r in results if "ita" in r.get("look", {})]
    if known:
        angles = [r["look"]["ita"] for r in known]
        split(f"skin appears light or very light (ITA over {LIGHT:.0f})", known, [a > LIGHT for a in angles])
        middle = f"skin appears intermediate or tan (ITA {DARK:.0f} to {LIGHT:.0f})"
        split(middle, known, [DARK < a <= LIGHT for a in angles])
        split(f"skin appears brown or dark (ITA up to {DARK:.0f})", known, [a <= DARK for a in angles])
    known = [r for r in results if "yaw" in r.get("look", {})]
    for turn in TURNS if known else ():
        split(f"head turns by more than {turn:.0f} degrees", known, [r["look"]["yaw"] > turn for r in known])
    return found


def row(name: str, chosen: Sequence[Record]) -> list[str]:
    """Figures of some clips: means over clips; mouth error over the clips' range, blinks over their frames."""
    if not chosen:
        return [name, "0", *[""] * (len(HEAD) - 3)]
    found = [r["face"] for r in chosen if "face" in r]
    identity = [f["identity"] for f in found if "identity" in f]
    mouths = [r["spots"]["mouth"]["psnr"] for r in chosen if "mouth" in r.get("spots", {})]
    closed = sum(f["closed"] for f in found)
    return [
        name,
        str(len(chosen)),
        f"{np.mean([r['psnr'] for r in chosen]):.2f}",
        f"{np.mean([r['ms_ssim'] for r in chosen]):.3f}",
        f"{np.mean([f['landmark_px'] for f in found]):.2f}" if found else "",
        f"{faces.mouth_share(found):.1%}" if found else "",
        f"{faces.blink_agreement(found):.1%} ({closed})" if closed else "none closed" if found else "",
        f"{np.mean(identity):.2f}" if identity else "",
        f"{np.mean(mouths):.2f}" if mouths else "",
    ]


HEAD = (
    "group", "clips", "PSNR, dB", "MS-SSIM", "landmarks, px", "mouth error", "blinks (closed frames)", "identity",
    "inside open mouths, dB", "PSNR against the others, dB (95 %)",
)  # fmt: skip


def verdict(group: Sequence[Record], others: Sequence[Record]) -> str:
    """PSNR of the group less that of the others, with its interval by resampling clips; a sentence for too few."""
    if min(len(group), len(others)) < FEWEST:
        return f"no conclusion: fewer than {FEWEST} clips"
    ours, theirs = (np.array([r["psnr"] for r in side]) for side in (group, others))
    generator = np.random.default_rng(0)
    draws = [
        side[generator.integers(0, len(side), (comparison.RESAMPLES, len(side)))].mean(axis=1)
        for side in (ours, theirs)
    ]
    low, high = np.percentile(draws[0] - draws[1], [2.5, 97.5])
    return f"{ours.mean() - theirs.mean():+.1f} ({low:+.1f} to {high:+.1f})"


def table(results: Sequence[Record], given: Labels) -> str:
    """All clips, then each group above all other clips."""
    rows = [[*row("all clips", results), ""]]
    for name, group, others in groups(results, given):
        rows += [[*row(name, group), verdict(group, others)], [*row("  all others", others), ""]]
    return report.markdown(HEAD, rows)


def add_looks(results: Sequence[dict[str, Any]], folder: Path) -> None:
    """Measure from the clips how they look, where the record does not say; SystemExit when it is other footage."""
    paths = {path.stem: path for path in clips.find(folder)}
    missing = [r for r in results if "look" not in r and r["clip"] in paths]
    with report.progress() as bar:
        for r in bar.track(missing, description="looks"):
            clip = clips.read(paths[r["clip"]])
            if clip.sha256 != r["sha256"]:
                raise SystemExit(f"{paths[r['clip']]} is not the file that was measured: give the same clips.")
            tracks = faces.tracks(clip, clip.frames, every=LOOKED_AT)
            if tracks is not None:
                r["look"] = regions.look(clips.chosen(clip.frames, LOOKED_AT), tracks[0])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.groups", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("record", type=Path, help="JSON that `python -m benchmarks.validation --json` wrote")
    parser.add_argument("--labels", type=Path, default=LABELS, help=f"default {LABELS.name} beside this program")
    parser.add_argument("--clips", type=Path, help="folder of the clips: turns and skin, where the record lacks them")
    options = parser.parse_args(arguments)
    record, given = report.load(options.record), labels(options.labels)
    results = record.get("clips") if isinstance(record, dict) else None
    if not results or not all(isinstance(r, dict) and {"clip", "sha256", "psnr", "ms_ssim"} <= set(r) for r in results):
        raise SystemExit(f"{options.record} is no record of benchmarks.validation: write one with its option --json.")
    if options.clips is not None:
        if faces.unavailable():
            raise SystemExit(faces.unavailable())
        add_looks(results, options.clips)
    print(table(results, given))
    if unlabelled := [r["clip"] for r in results if r["clip"] not in given.clips]:
        print(f"\nNot in {options.labels.name}, so in no labelled group: {', '.join(unlabelled)}.")
    if unseen := [r["clip"] for r in results if "look" not in r]:
        print(f"\nNot known how {len(unseen)} clips look (turns, skin): give --clips, or measure them again.")


if __name__ == "__main__":
    report.run(main)
