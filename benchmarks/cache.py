"""What was measured once is kept: coded streams and their figures, by everything that decides them. Measures nothing.

An entry is named by the SHA-256 of what made it (clip hash, codec, exact options, library versions; for ours the pack
and the source), so that a changed option is a new entry and an unchanged one is never coded twice. The coded stream
stays beside its record: a metric added later costs a decode, not an encode.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import plain
from neuralcodec.runtime.engine import write_whole

KEY_LENGTH = 24  # hex digits: 96 bits


@dataclass
class Entry:
    """what: everything that decides the result. coded: sizes, times, settings. figures: results by group of metrics."""

    what: Mapping[str, Any]
    coded: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)


class Cache:
    """A folder of entries, safe to share between processes: files appear whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, what: Mapping[str, Any]) -> Entry:
        """The entry for ``what``, empty when nothing is known yet."""
        path = self._path(what, "json")
        if not path.exists():
            return Entry(what)
        kept = json.loads(path.read_text("utf-8"))
        return Entry(what, kept["coded"], kept["figures"])

    def save(self, entry: Entry) -> None:
        entry.figures = self.load(entry.what).figures | entry.figures  # another process may have measured others
        text = json.dumps({"what": entry.what, "coded": entry.coded, "figures": entry.figures}, default=plain)
        write_whole(self._path(entry.what, "json"), text.encode())

    def stream(self, what: Mapping[str, Any]) -> list[bytes]:
        """The packets kept by :meth:`save_stream`."""
        return list(_unpacked(self._path(what, "bin").read_bytes()))

    def save_stream(self, what: Mapping[str, Any], packets: Sequence[bytes]) -> None:
        write_whole(self._path(what, "bin"), b"".join(struct.pack("<I", len(p)) + p for p in packets))

    def _path(self, what: Mapping[str, Any], suffix: str) -> Path:
        canonical = json.dumps(what, sort_keys=True, default=plain)
        key = hashlib.sha256(canonical.encode()).hexdigest()[:KEY_LENGTH]
        return self.folder / str(what["codec"]) / f"{key}.{suffix}"


def _unpacked(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        yield data[at + 4 : at + 4 + length]
        at += 4 + length
