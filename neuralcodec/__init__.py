"""neuralcodec: a talking-head video codec that sends head pose and expression instead of pixels.

    send     frame -> face -> inference -> motion -> quantizer -> entropy -> packet -> bytes
                       |                                                       ^
                       +----------------------- reference --------------------+
    receive  bytes -> packet -> entropy -> quantizer -> motion -> inference -> face -> frame
                        |                                  ^           (reference features, kept)
                        +---> reference       concealment -+  when packets are missing

Every word of the picture is a module of this package. ``Encoder`` and ``Decoder`` are the two facades; FORMAT.md
beside this file is the bitstream.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    BackendUnavailableError,
    BitstreamError,
    InferenceError,
    LimitError,
    MediaError,
    MissingReferenceError,
    NeuralCodecError,
    NoFaceError,
    PackError,
    PackMismatchError,
    SigningError,
    TruncatedError,
    UnsupportedVersionError,
)

if TYPE_CHECKING:
    from .avatar import Avatar as Avatar
    from .decoder import DecodedFrame as DecodedFrame
    from .decoder import Decoder as Decoder
    from .encoder import Encoder as Encoder
    from .film import Film as Film
    from .motion import MotionParams as MotionParams
    from .motion import View as View
    from .pack import Pack as Pack
    from .pack import load_pack as load_pack
    from .video import decode_file as decode_file
    from .video import encode_file as encode_file
    from .video import probe as probe

__version__ = "0.1.0"

# Loaded when first used: `import neuralcodec` stays under 150 ms and touches no codec library.
_HOMES = {
    "Avatar": "avatar",
    "Encoder": "encoder",
    "Film": "film",
    "Decoder": "decoder",
    "DecodedFrame": "decoder",
    "MotionParams": "motion",
    "View": "motion",
    "Pack": "pack",
    "load_pack": "pack",
    "encode_file": "video",
    "decode_file": "video",
    "probe": "video",
}

__all__ = [
    *_HOMES,
    "BackendUnavailableError",
    "BitstreamError",
    "InferenceError",
    "LimitError",
    "MediaError",
    "MissingReferenceError",
    "NeuralCodecError",
    "NoFaceError",
    "PackError",
    "PackMismatchError",
    "SigningError",
    "TruncatedError",
    "UnsupportedVersionError",
]


if not TYPE_CHECKING:  # a type checker that saw it would take every misspelled name for one that is here

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module 'neuralcodec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
