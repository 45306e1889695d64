"""What the export commands share about files: folders that fill at once, and what a refusal of the system says."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def together(out: Path) -> Iterator[Path]:
    """A folder to write files to, which move to ``out`` when the block ends well: files that belong together are all
    new or all as they were, however the command stops. Other files in ``out`` stay."""
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        # Inside ``out`` and not beside it: that may be another file system, or not ours to write to.
        with tempfile.TemporaryDirectory(dir=out, prefix=".new.") as scratch:
            yield Path(scratch)
            for path in sorted(Path(scratch).iterdir()):
                os.replace(path, out / path.name)
    finally:
        if made:
            with suppress(OSError):  # it holds something, as it should
                out.rmdir()


def reason(error: Exception) -> str:
    """An error as a sentence: without the number that OSError puts in front, and with its file first."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)} cannot be used ({error.strerror})."
    return str(error)
