"""What a second process finds in an .ncv file; run by benchmarks.validation. Prints one line.

``python -m benchmarks.probe symbols FILE PACK``: digest of the motion symbols.
``python -m benchmarks.probe memory FILE PACK``: peak resident memory in MB after decoding the file, frame by frame.
"""

from __future__ import annotations

import sys
from pathlib import Path


def symbols(file: Path, pack: Path) -> str:
    from benchmarks.ours import follow_symbols

    return follow_symbols(file.read_bytes(), pack / "tables.json")[0]


def memory(file: Path, pack: Path) -> str:
    import neuralcodec
    from neuralcodec.container import ContainerReader

    decoder = neuralcodec.Decoder(pack=pack, device="cpu")
    with file.open("rb") as stream:
        for packet in ContainerReader(stream):
            decoder.decode(bytes(packet))
    return f"{peak_mb():.1f}"


def peak_mb(process: str = "self") -> float:
    """Peak resident memory of a process. Not ru_maxrss where it can be helped: that keeps the parent's peak."""
    status = Path(f"/proc/{process}/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


if __name__ == "__main__":
    print({"symbols": symbols, "memory": memory}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3])))
