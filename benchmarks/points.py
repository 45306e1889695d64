"""One clip, one codec, one setting: coded once, measured once, kept in the cache. Owns what a rate counts.

Rates of a point, kbit/s. ``kbps``: whole stream (ours: the .ncv file with container, headers and references). ``net``:
without reference pictures (the others: without the key frame). ``call_1``, ``call_10``: the first picture spread over a
call of 1 or 10 minutes in place of the clip's few seconds, later references as they came. ``wire``: 40 bytes of IPv4,
UDP and RTP headers for every packet of at most 1200 bytes. ``wire_shared``: the same when whatever falls into 200 ms
shares packets, for everybody, at the cost of that much delay.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np

from benchmarks import clips, codecs, faces, metrics, ours, perceptual, pretrained, report
from benchmarks.cache import Cache, Entry

WIRE_HEADER, WIRE_PAYLOAD = 40, 1200  # bytes
SHARED_FRAMES = 5  # 200 ms
PEAK_FRAMES = 50  # two seconds
EVERY = 11  # frames from one that is looked at to the next; odd: every layer of reordered frames gets its turn
CALL_MINUTES = (1, 10)
OUR_LIBRARIES = ("numpy", "av", "constriction", "onnxruntime", "onnxruntime-gpu")  # those that can change our bytes
Measure = Callable[[clips.Clip, Sequence[Any], int], dict[str, float]]


@dataclass(frozen=True)
class Footage:
    """Where a clip is and how much of it is used. limit: first frames only. size: resized to this square first."""

    path: Path
    limit: int | None = None
    size: int | None = None

    def read(self) -> clips.Clip:
        return _read(self.path, self.limit, self.size)

    @property
    def facts(self) -> Facts:
        return _facts(self)


@dataclass(frozen=True)
class Facts:
    """What names and measures a clip, kept when its frames are not. size: width, height."""

    name: str
    sha256: str
    frames: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Group:
    """Figures that are measured together. version: changes whenever the figures would. tools: packages, and "ffmpeg",
    whose versions they depend on too."""

    name: str
    version: str
    measure: Measure
    unavailable: Callable[[], str]
    tools: tuple[str, ...] = ()

    def made(self, every: int) -> str:
        """What a figure in the cache must say to be as good as one that is measured now."""
        found = {**report.versions(), "ffmpeg": codecs.program_version() if "ffmpeg" in self.tools else ""}
        used = [f"{tool} {found[tool]}" for tool in self.tools if found.get(tool)]
        return ", ".join([self.version, f"every {every}", *used])


DLIB = ("dlib-bin", "dlib", "face_recognition_models")

GROUPS = {
    group.name: group
    for group in (
        Group("picture", "2", lambda c, f, n: metrics.picture(c.frames, f, every=n), lambda: ""),
        Group(
            "vmaf",
            "2",
            lambda c, f, n: {"vmaf": metrics.vmaf(c.frames, f, every=n)},
            lambda: "" if metrics.has_vmaf() else "VMAF needs an ffmpeg program: pip install 'neuralcodec[bench]'.",
            ("ffmpeg",),
        ),
        Group("temporal", "2", lambda c, f, n: metrics.temporal(c.frames, f, luma_before=c.luma), lambda: ""),
        Group("landmarks", "2", lambda c, f, n: faces.landmark_figures(c, f, every=n), faces.unavailable, DLIB),
        Group("identity", "2", lambda c, f, n: faces.identity_figures(c, f, every=n), faces.unavailable, DLIB),
        Group(
            "perceptual", "2", lambda c, f, n: perceptual.figures(c, f), perceptual.unavailable, ("stlpips-pytorch",)
        ),
        Group(
            "lpips",
            "2",
            lambda c, f, n: pretrained.figures("lpips", c, f),
            lambda: pretrained.unavailable("lpips"),
            ("lpips", "torchvision"),
        ),
        Group(
            "dists",
            "2",
            lambda c, f, n: pretrained.figures("dists", c, f),
            lambda: pretrained.unavailable("dists"),
            ("DISTS-pytorch", "torchvision"),
        ),
    )
}


@dataclass(frozen=True)
class Baseline:
    """An ordinary codec at one setting."""

    footage: Footage
    codec: str
    quality: float
    scale: float = 1.0
    hold: int = 1

    @property
    def name(self) -> str:
        small, rare = f" scale {self.scale:g}" * (self.scale != 1), f" fps/{self.hold}" * (self.hold != 1)
        return f"q{self.quality:g}{small}{rare}"

    def what(self) -> dict[str, Any]:
        codec = codecs.CODECS[self.codec]
        return {
            **_clip_key(self.footage),
            "codec": self.codec,
            "options": codec.exact(self.quality),
            "size": codecs.coded_size(self.footage.facts.size, self.scale),
            "hold": self.hold,
            "passes": codec.passes,
            "library": codec.library,
            "decoder": f"PyAV {av.__version__}",
        }

    def code(self, cache: Cache, entry: Entry) -> list[Any]:
        clip = self.footage.read()
        coded = codecs.code(
            codecs.CODECS[self.codec], clip.frames, self.quality, scale=self.scale, hold=self.hold,
            planes=_planes(self.footage, self.scale, self.hold),
        )  # fmt: skip
        sent: list[list[int]] = [[] for _ in clip.frames]
        for index, size in enumerate(coded.sizes):
            sent[index * self.hold] = _split(size)
        entry.coded = {
            "bytes": coded.bytes,
            "first": coded.sizes[0],
            "references": coded.sizes[0],
            "sent": sent,
            "setting": dict(coded.setting),
            "library": coded.library,
        }
        cache.save_stream(entry.what, coded.packets)
        cache.save(entry)
        return coded.frames

    def decode(self, cache: Cache) -> list[Any]:
        clip = self.footage.read()
        packets = cache.stream(self.what())
        return codecs.decode(codecs.CODECS[self.codec], packets, clip.size, count=len(clip.frames), hold=self.hold)[0]


@dataclass(frozen=True)
class Ours:
    """neuralcodec at one target rate, kbit/s. The other settings: as in a call, or as ours.FILE."""

    footage: Footage
    kbps: float
    pack: str | None = None
    device: str = "cpu"
    codec: str = "neuralcodec"
    frames_per_packet: int = 1
    lookahead: int = 0
    film: bool = False
    window: float | None = None  # seconds; None: the usual ones

    @property
    def name(self) -> str:
        return f"{self.kbps:g} kbit/s"

    @property
    def way(self) -> dict[str, Any]:
        way: dict[str, Any] = {"frames_per_packet": self.frames_per_packet, "lookahead": self.lookahead}
        way |= {"film": True} if self.film else {}
        return way if self.window is None else {**way, "window": self.window}

    def what(self) -> dict[str, Any]:
        return {
            **_clip_key(self.footage),
            "codec": self.codec,
            "target_kbps": self.kbps,
            **self.way,
            **coder(self.pack, self.device),
        }

    def code(self, cache: Cache, entry: Entry) -> list[Any]:
        clip = self.footage.read()
        sent = ours.send(
            clip, kbps=self.kbps, pack=self.pack, device=self.device, threads=1,
            **self.way,
        )  # fmt: skip
        per_frame: list[list[int]] = [[] for _ in clip.frames]
        for packet, frame in zip(sent.packets, sent.packet_frames, strict=True):
            per_frame[min(frame, len(clip.frames) - 1)].append(len(packet))
        entry.coded = {
            "bytes": len(sent.file),
            "first": sent.first_reference_bytes,
            "references": sent.bytes_by_kind.get("ReferencePart", 0),
            "sent": per_frame,
            "setting": {
                "target_kbps": self.kbps,
                **self.way,
                "bytes_by_kind": sent.bytes_by_kind,
                "references": sent.references,
            },  # fmt: skip
            "library": f"{sent.library}, pack {_pack_id(self.pack)}, {sent.provider}",
        }
        cache.save_stream(entry.what, [sent.file])
        cache.save(entry)
        return sent.frames

    def decode(self, cache: Cache) -> list[Any]:
        (file,) = cache.stream(self.what())
        return ours.decode(file, self.footage.read(), pack=self.pack, device=self.device, threads=1).frames


Setting = Baseline | Ours


def measure(setting: Setting, cache: Cache, groups: Sequence[str], *, every: int = EVERY) -> dict[str, Any]:
    """The point of a setting: from the cache where it is there, coded and measured where it is not."""
    entry = cache.load(setting.what())
    frames = None if entry.coded else setting.code(cache, entry)
    for name in groups:
        version = GROUPS[name].made(every)
        if entry.figures.get(name, {}).get("version") != version:
            frames = setting.decode(cache) if frames is None else frames
            entry.figures[name] = {**GROUPS[name].measure(setting.footage.read(), frames, every), "version": version}
            cache.save(entry)
    return point(setting, entry, groups)


def known(setting: Setting, cache: Cache, groups: Sequence[str], *, every: int = EVERY) -> list[str]:
    """Those of the groups that the cache holds for a setting."""
    figures = cache.load(setting.what()).figures
    return [name for name in groups if figures.get(name, {}).get("version") == GROUPS[name].made(every)]


def point(setting: Setting, entry: Entry, groups: Sequence[str]) -> dict[str, Any]:
    clip = setting.footage.facts
    figures = {key: value for name in groups for key, value in entry.figures[name].items() if key != "version"}
    return {
        "clip": clip.name,
        "sha256": clip.sha256,
        "frames": clip.frames,
        "codec": setting.codec,
        "name": setting.name,
        **rates(entry.coded, clip.frames / clips.FPS),
        **figures,
        **{key: entry.coded[key] for key in ("setting", "library")},
    }


def rates(coded: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Every rate of the module's first paragraph, ``bytes``, and what its fullest PEAK_FRAMES take for the mean."""
    scale = 8 / 1000
    whole, first = coded["bytes"], coded["first"]
    sent: list[list[int]] = coded["sent"]
    packets = sum(len(sizes) for sizes in sent)
    windows = (sum(map(sum, sent[at : at + SHARED_FRAMES])) for at in range(0, len(sent), SHARED_FRAMES))
    shared = sum(math.ceil(size / WIRE_PAYLOAD) for size in windows)
    before = np.cumsum([0, *(sum(sizes) for sizes in sent)])
    span = min(PEAK_FRAMES, len(sent))
    return {
        "bytes": whole,
        "kbps": whole * scale / seconds,
        "net": (whole - coded["references"]) * scale / seconds,
        **{f"call_{m}": ((whole - first) / seconds + first / (60 * m)) * scale for m in CALL_MINUTES},
        "wire": (whole + WIRE_HEADER * packets) * scale / seconds,
        "wire_shared": (whole + WIRE_HEADER * shared) * scale / seconds,
        "peak": float((before[span:] - before[:-span]).max() / before[-1] * len(sent) / span),
    }


def coder(pack: str | None, device: str) -> dict[str, Any]:
    """What decides our bytes besides the clip and the setting."""
    return {
        "device": device,
        "pack": _pack_id(pack),
        "source": source_version(),
        "libraries": {name: v for name, v in report.versions().items() if name in OUR_LIBRARIES},
    }


@cache
def source_version() -> str:
    """Hash of the package's source and tables: two runs with the same one code the same bytes from the same pack."""
    import neuralcodec

    root = Path(neuralcodec.__file__).parent
    digest = hashlib.sha256()
    for path in sorted((*root.rglob("*.py"), *root.glob("*.json"))):
        if path.relative_to(root).parts[0] not in ("models", "training"):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _pack_id(pack: str | None) -> str:
    from neuralcodec import load_pack

    return load_pack(pack).id.hex()


def _clip_key(footage: Footage) -> dict[str, Any]:
    return {"clip": footage.facts.sha256, "limit": footage.limit, "resized": footage.size}


@cache
def _facts(footage: Footage) -> Facts:
    clip = footage.read()
    return Facts(clip.name, clip.sha256, len(clip.frames), clip.size)


@lru_cache(maxsize=4)
def _planes(footage: Footage, scale: float, hold: int) -> list[Any]:
    return codecs.planes(footage.read().frames, scale=scale, hold=hold)


@lru_cache(maxsize=2)
def _read(path: Path, limit: int | None, size: int | None) -> clips.Clip:
    return clips.read(path, limit=limit, size=size)


def _split(size: int) -> list[int]:
    whole, rest = divmod(size, WIRE_PAYLOAD)
    return [WIRE_PAYLOAD] * whole + [rest] * bool(rest)
