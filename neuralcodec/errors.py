"""Every exception the SDK raises on purpose; each message says what was found, what was expected and what to do.

A lost packet or a missing face is not here: those are states with a counter (see ``Decoder.stats``).
"""

from __future__ import annotations

import zlib
from typing import Any
from zipfile import BadZipFile

# not ours: what np.load raises for an .npz that is none, is cut short or damaged
DAMAGED_NPZ = (ValueError, TypeError, KeyError, EOFError, RuntimeError, BadZipFile, zlib.error)


class NeuralCodecError(Exception):
    """Base of all errors raised by neuralcodec."""


class BitstreamError(NeuralCodecError, ValueError):
    """The bytes break a validity rule of FORMAT.md.

    ``rule`` is the rule's number as written there ("R3"), ``offset`` the byte at which it was noticed.
    """

    def __init__(self, message: str, *, rule: str = "", offset: int = 0) -> None:
        super().__init__(message)
        self.rule = rule
        self.offset = offset


class TruncatedError(BitstreamError):
    """The bytes end before the structure they announce does."""


class UnsupportedVersionError(BitstreamError):
    """The stream was written by a newer, incompatible version of the format."""


class LimitError(BitstreamError):
    """A size in the stream exceeds what a decoder must accept."""


class MissingReferenceError(NeuralCodecError, LookupError):
    """A frame was asked for before the reference picture it needs had arrived."""


class PackError(NeuralCodecError):
    """A model pack is missing, damaged or unusable."""


class PackMismatchError(PackError):
    """The stream needs another model pack than the one that is loaded."""


class SigningError(NeuralCodecError, ValueError):
    """A signing key is unusable, or a stream is not signed by the sender that was asked for."""


class BackendUnavailableError(NeuralCodecError, ImportError):
    """An optional dependency is not installed, or the device asked for cannot be had."""


class InferenceError(NeuralCodecError, RuntimeError):
    """A network gave an unusable result (NaN, wrong shape) or its backend failed."""


class MediaError(NeuralCodecError, OSError):
    """A video or picture file cannot be read or written."""


class NoFaceError(NeuralCodecError, ValueError):
    """No face was found anywhere in the input."""


def check_flags(**flags: Any) -> None:
    """ValueError for an option that is neither True nor False: "no" would count as True."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise ValueError(f"{name} is {flag!r:.40}; expected True or False.")
