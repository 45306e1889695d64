"""Does the bitstream hold all its promises? Four benchmarks, one after the other, and what each of them says.

``python -m benchmarks.bitstream --clips DIR`` runs coding, loss, fuzz and endurance and takes hours; ``--quick`` takes
four clips of six seconds, a hundredth of the packets and half an hour of the day. The exit code is 1 when one of them
misses a bar. Each is a command of its own, with more options: see README.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from benchmarks import report


def commands(clips: Path, out: Path, *, quick: bool) -> dict[str, list[str]]:
    """What each benchmark is run with. Their records go to the folder ``out``; none goes on from an earlier one, which
    may be of other code."""
    few = ["--clips", str(clips), "--limit", "4", "--frames", "150"]
    every = {
        "coding": [*(few if quick else few[:2]), "--fresh"],
        "loss": few,
        "fuzz": ["--packets", "100000" if quick else "10000000"],
        "endurance": ["--frames", "45000"] if quick else [],
    }
    return {name: [*options, "--json", str(out / f"{name}.json")] for name, options in every.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Coding, loss, fuzz and endurance, one after the other.")
    parser.add_argument("--clips", type=Path, required=True, help="a folder of video files")
    parser.add_argument("--out", type=Path, default=Path("bitstream"), help="folder for the records")
    parser.add_argument("--quick", action="store_true", help="a trial of all four in some minutes")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    console, codes = Console(), {}
    for name, given in commands(options.clips, options.out, quick=options.quick).items():
        console.rule(name)
        codes[name] = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *given]).returncode
    console.rule("all")
    for name, code in codes.items():
        console.print(f"{name}: {'holds' if code == 0 else 'misses a bar or failed, see above'}")
    return int(any(codes.values()))


if __name__ == "__main__":
    report.run(main)
