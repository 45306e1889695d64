"""Fit the table that codes the frame headers of updates (FORMAT.md section 7.2) to streams.

    python -m export.fit_frame_header STREAMS... --out frame_header.json [--validate STREAMS...]

Streams are .ncv files, or folders of them, as the encoder makes them from real clips: at several rates, as files and
as calls (``encode_file(..., lookahead=0, frames_per_packet=1)``), since SVT-AV1's presets differ. ``--validate`` prints
what coding headers saves in streams that the table was not fitted to. The table belongs to the format: streams coded
with another cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import track

from export.files import reason
from neuralcodec.chain import CODED_HEADERS
from neuralcodec.container import ContainerReader
from neuralcodec.errors import MediaError, NeuralCodecError
from neuralcodec.fragments import Assembler
from neuralcodec.frame_header import (
    BITS,
    DIRECT,
    FRONT,
    HINT_SHIFT,
    NEW,
    ONCE,
    OTHER,
    PERIOD,
    PLAIN,
    HeaderCoder,
    HeaderTable,
    HeaderWriter,
)
from neuralcodec.packet import SIGNED, ReferencePart, Update
from neuralcodec.quantizer import PRECISION
from neuralcodec.reference import KEY
from neuralcodec.runtime.engine import write_whole
from neuralcodec.signing import SIGNATURE_BYTES

PRIOR = 0.02  # of a count, for what was never seen
TELLS = 4  # the update by whose front the presets are told apart


@dataclass
class Chain:
    """size: of the pictures, pixels. flags: of the key. frames: payloads of the frame OBUs of its updates."""

    size: int
    flags: int
    frames: list[bytes] = field(default_factory=list)


def chains(path: Path) -> list[Chain]:
    """All chains of a stream, of which nothing is missing."""
    found: list[Chain] = []
    assembler, headers = Assembler(), None
    with path.open("rb") as file:
        reader = ContainerReader(file)
        for packet in reader:
            if not isinstance(packet, ReferencePart | Update) or (coded := assembler.add(packet)) is None:
                continue
            signed = packet.signed if isinstance(packet, Update) else packet.codec & SIGNED
            coded = coded[SIGNATURE_BYTES:] if signed else coded
            if isinstance(packet, Update):
                if not found:
                    raise MediaError(f"{path} begins inside a chain; give streams of which nothing is missing.")
                found[-1].frames.append(headers.restore(coded) if headers else coded)
            elif packet.codec & ~SIGNED == KEY:
                flags = int.from_bytes(coded[:2], "big")
                tools = flags % CODED_HEADERS
                found.append(Chain(reader.header.size, tools))
                headers = HeaderCoder(reader.header.size, tools) if flags & CODED_HEADERS else None
    return found


def load(paths: Sequence[Path], what: str) -> list[Chain]:
    files = [file for path in paths for file in (sorted(path.glob("*.ncv")) if path.is_dir() else [path])]
    if paths and not files:
        raise MediaError(f"{', '.join(map(str, paths))} holds no .ncv file.")
    return [chain for file in track(files, what) for chain in chains(file)]


def fronts(chains: Sequence[Chain]) -> list[list[int]]:
    """What begins the updates of the two kinds of presets, order hints apart: of updates 1 to ONCE + PERIOD."""
    told = Counter(_front(chain.frames[TELLS - 1]) for chain in chains if len(chain.frames) >= TELLS)
    found = []
    for tell, _ in told.most_common(OTHER):
        seen: list[Counter[int]] = [Counter() for _ in range(ONCE + PERIOD)]
        for chain in chains:
            if len(chain.frames) >= TELLS and _front(chain.frames[TELLS - 1]) == tell:
                for place, frame in enumerate(chain.frames[: ONCE + PERIOD]):
                    seen[place][_front(frame)] += 1
        if not all(seen):
            raise SystemExit(f"No stream has {ONCE + PERIOD} updates in one chain; give longer ones.")
        found.append([counter.most_common(1)[0][0] for counter in seen])
    if len(found) < OTHER:
        raise SystemExit("All streams were coded with presets of one kind; give files and calls.")
    return sorted(found)


def _front(frame: bytes) -> int:
    return int.from_bytes(frame[: FRONT // 8], "big") & ~(127 << HINT_SHIFT)


class _Counting(HeaderWriter):
    """Counts what is coded with each row: rows are lists of counts here."""

    def symbol(self, row: Any, value: int | None) -> int:
        assert value is not None
        if isinstance(row, list):
            row[value] += 1
        return value


class _Counts(HeaderTable):
    """The table with a count for every frequency."""

    def __init__(self, fronts: list[list[int]]) -> None:
        self._fronts = fronts
        self.kinds = [[0] * (PLAIN + 1) for _ in range(PLAIN + 1)]
        self.rows = [{name: _rows(bits) for name, bits in BITS.items()} for _ in range(2)]

    def table(self) -> dict[str, Any]:
        """What frame_header.json holds."""
        digits = FRONT // 4
        return {
            "fronts": [[f"{front:0{digits}x}" for front in fronts] for fronts in self._fronts],
            "kinds": _shares(self.kinds),
            "fields": _shares(self.rows),
        }


def _rows(bits: int) -> dict[str, Any]:
    """Of one field, all zero."""
    if bits <= DIRECT:
        return {"value": [[0] * (1 << bits) for _ in range(1 << 2 * bits)]}
    return {"how": [[0] * (NEW + 1) for _ in range(2)], "value": [0] * (1 << bits)}


def _shares(counts: Any) -> Any:
    """Frequencies of at least 1 that sum to 2**PRECISION."""
    if isinstance(counts, dict):
        return {name: _shares(count) for name, count in counts.items()}
    if not isinstance(counts[0], int):
        return [_shares(count) for count in counts]
    total = sum(counts) + PRIOR * len(counts)
    free = (1 << PRECISION) - len(counts)
    shares = [1 + int(free * (count + PRIOR) / total) for count in counts]
    shares[shares.index(max(shares))] += (1 << PRECISION) - sum(shares)
    return shares


def fit(chains: Sequence[Chain]) -> dict[str, Any]:
    counts = _Counts(fronts(chains))
    for chain in chains:
        coder = HeaderCoder(chain.size, chain.flags, counts)
        for frame in chain.frames:
            port = _Counting(frame, coder.kind_of(frame))
            coder.advance(port.kind, coder.code(port))
    return counts.table()


def measure(chains: Sequence[Chain], table: HeaderTable) -> tuple[float, float]:
    """Mean bytes of an update, and of those what coding its header saves."""
    before = after = count = 0
    for chain in chains:
        sender, receiver = (HeaderCoder(chain.size, chain.flags, table) for _ in range(2))
        for frame in chain.frames:
            coded = sender.shorten(frame)
            if receiver.restore(coded) != frame:
                raise SystemExit("A header did not come back as it was: this is a bug.")
            before, after, count = before + len(frame), after + len(coded), count + 1
    return before / max(1, count), (before - after) / max(1, count)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.fit_frame_header", description=__doc__.split("\n")[0])
    parser.add_argument("streams", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--validate", nargs="*", type=Path, default=[], help="streams to measure the table on")
    options = parser.parse_args(arguments)
    try:
        streams, others = load(options.streams, "Reading"), load(options.validate, "Reading")
        table = fit(streams)
        for name, measured in (("fitted to", streams), ("others", others)):
            if measured:
                size, saved = measure(measured, HeaderTable(table))
                print(f"{name}: updates of {size:.1f} bytes, {saved:.2f} of them saved")
        write_whole(options.out, (json.dumps(table, separators=(",", ":")) + "\n").encode())
    except (NeuralCodecError, OSError) as error:
        print(f"error: {reason(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
