"""Trains the face detector: labelled faces pasted onto anything that is no face. Knows no codec and no other network.

    python -m neuralcodec.training.detector DATA --minutes 12 --out detector.safetensors --export detector.onnx

DATA is a folder that `neuralcodec.training.prepare` wrote. Its validation people are only measured. Photographs without
labels (--stills) join at half time, labelled by the network itself. The pictures of scikit-image serve as backgrounds
where it is installed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, track
from safetensors.torch import save as to_bytes
from torch import Tensor

from neuralcodec.errors import NeuralCodecError, PackError
from neuralcodec.face import THRESHOLD, Square, crop, decode_faces
from neuralcodec.models.detector import SIZE, STRIDE, Detector, export_onnx
from neuralcodec.motion import Array
from neuralcodec.runtime.engine import write_whole
from neuralcodec.training.data import cached, decode, made_of, read_labels
from neuralcodec.training.feature_networks import read_weights

FACELESS = ["brick", "chelsea", "chessboard_GRAY", "clock_motion", "coffee", "coins", "color", "grass", "gravel",
            "horse", "hubble_deep_field", "ihc", "logo", "microaneurysms", "moon", "motorcycle_left", "page", "phantom",
            "retina", "rocket", "text"]  # fmt: skip
# Never a background in training: false positives are counted on these.
HELD_OUT = ["clock_motion", "ihc", "motorcycle_left", "rocket"]
BAR = 128 / 255  # what face.py letterboxes with


@dataclass
class Faces:
    """Crops with a face each: pictures uint8 (N, 3, 160, 160), box (N, 3) = centre x, y, half side in crop units."""

    pictures: Tensor
    box: Tensor

    def __post_init__(self) -> None:
        levels = [self.pictures]
        while levels[-1].shape[-1] > SIZE // 8:  # smaller copies, so that small faces do not alias
            levels.append(F.avg_pool2d(levels[-1].float(), 2).round().to(torch.uint8))
        self.levels = levels

    def __len__(self) -> int:
        return len(self.box)

    def plus(self, other: Faces) -> Faces:
        return Faces(torch.cat([self.pictures, other.pictures]), torch.cat([self.box, other.box]))


def load_faces(data: Path, split: str, per_clip: int, cache: Path | None = None) -> Faces:
    """Evenly spaced labelled frames of every clip of a split; ``cache`` is the one of `neuralcodec.training.train`."""
    pictures, boxes = [], []
    for path in track(sorted((data / split / "labels").glob("*.npz")), f"faces of {split}"):
        label = read_labels(path)
        good = np.flatnonzero(label["found"])
        wanted = good[:: max(1, len(good) // per_clip)].tolist()
        for number, image in clip_frames(data / split / "256" / f"{path.stem}.mp4", wanted, cache and cache / split):
            pictures.append(torch.from_numpy(crop(image, Square(0, 0, image.shape[0]), SIZE)).permute(2, 0, 1))
            boxes.append([*label["translation"][number, :2].tolist(), float(label["scale"][number])])
    if not boxes:
        raise SystemExit(f"{data / split} holds no labelled clip; make some with neuralcodec.training.prepare.")
    return Faces(torch.stack(pictures), torch.tensor(boxes))


def clip_frames(clip: Path, wanted: list[int], cache: Path | None) -> Iterator[tuple[int, Array]]:
    """(number, picture) of the wanted frames of a clip."""
    decoded = cached(clip, cache) if cache else None
    if decoded and made_of(decoded, clip):
        frames = np.load(decoded, mmap_mode="r")
        yield from ((number, np.asarray(frames[number])) for number in wanted if number < len(frames))
        return
    frames = decode(clip)
    yield from ((number, frames[number]) for number in wanted if number < len(frames))


def read_picture(path: Path) -> Array:
    """uint8 RGB of a picture file."""
    return np.asarray(decode(path)[0])


# -- backgrounds ---------------------------------------------------------------------------------------------


def random_square(image: Array, rng: np.random.Generator, least: float = 0.15) -> Tensor:
    side = int(min(image.shape[:2]) * np.exp(rng.uniform(np.log(least), 0)))
    top, left = rng.integers(0, image.shape[0] - side + 1), rng.integers(0, image.shape[1] - side + 1)
    turned = np.rot90(crop(image, Square(int(left), int(top), max(side, 8)), SIZE), int(rng.choice([0, 0, 0, 1, 3])))
    return torch.from_numpy(turned.copy()).permute(2, 0, 1)


def faceless_pictures(names: list[str]) -> list[Array]:
    """scikit-image's bundled pictures without people, as uint8 RGB; none where it is not installed."""
    try:
        from skimage import data
    except ImportError:
        return []
    pictures = []
    folder = Path(data.__file__).parent
    for path in sorted(folder.iterdir()):
        if path.stem in names:
            pictures.append(read_picture(path))
    return pictures


def drawn(rng: np.random.Generator) -> Tensor:
    """A gradient, clouds of noise, stripes, blocks or blobs in random colours."""
    low, high = rng.uniform(0, 255, (2, 3, 1, 1))
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    kind = rng.integers(0, 6)
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    if kind == 0:
        plane = along
    elif kind == 1:
        grid = torch.from_numpy(rng.uniform(0, 1, (1, 1, *rng.integers(2, 40, 2))))
        plane = F.interpolate(grid, size=(SIZE, SIZE), mode="bilinear")[0, 0].numpy()
    elif kind == 2:
        plane = (np.sin(along * rng.uniform(5, 120)) > rng.uniform(-0.7, 0.7)).astype(float)
    elif kind == 3:
        grid = torch.from_numpy(rng.uniform(0, 1, (1, 3, *rng.integers(2, 24, 2))))
        return (F.interpolate(grid, size=(SIZE, SIZE), mode="nearest")[0] * 255).to(torch.uint8)
    elif kind == 4:  # discs: bright ovals with darker spots are what a lazy network takes for faces
        plane = np.full((SIZE, SIZE), 0.1)
        for _ in range(rng.integers(1, 12)):
            cx, cy, rx, ry = *rng.uniform(0, 1, 2), *np.exp(rng.uniform(-4, -1, 2))
            plane[((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1] = rng.uniform(0, 1)
    else:
        noise = rng.uniform(0, 1, (3, SIZE, SIZE)) * rng.uniform(0.2, 1)
        return torch.from_numpy((noise * 255).astype(np.uint8))
    plane = (plane - plane.min()) / max(1e-6, float(np.ptp(plane)))
    return torch.from_numpy((low + (high - low) * plane).clip(0, 255).astype(np.uint8))


def beside_the_face(faces: Faces, count: int, rng: np.random.Generator) -> list[Tensor]:
    """Squares of the footage beside the face, and crops whose face is jumbled, smeared out or papered over."""
    out = []
    for number in rng.choice(len(faces), count):
        image = faces.pictures[number].permute(1, 2, 0).numpy()
        x, y, half = ((faces.box[number] + torch.tensor([1.0, 1.0, 0.0])) * SIZE / 2).tolist()
        top, bottom = int(max(0, y - 1.1 * half)), int(min(SIZE, y + 1.25 * half))
        left, right = int(max(0, x - 1.0 * half)), int(min(SIZE, x + 1.0 * half))
        if rng.random() < 0.5:
            strips = [image[:, :left], image[:, right:], image[:top], image[bottom:]]
            strips = [strip for strip in strips if min(strip.shape[:2]) >= 20]
            if strips:
                out.append(random_square(strips[rng.integers(len(strips))], rng, 0.6))
            continue
        blank = image.copy()
        inside = image[top:bottom, left:right]
        kind = rng.integers(0, 3)
        if kind == 0:
            rows, columns = np.array_split(inside, 3), 3
            tiles = [tile for row in rows for tile in np.array_split(row, columns, axis=1)]
            order = rng.permutation(9)
            height, width = min(t.shape[0] for t in tiles), min(t.shape[1] for t in tiles)
            mixed = [np.concatenate([tiles[k][:height, :width] for k in order[r * 3 : r * 3 + 3]], 1) for r in range(3)]
            joined = np.concatenate(mixed)
            blank[top : top + joined.shape[0], left : left + joined.shape[1]] = joined
        elif kind == 1:
            blank[top:bottom, left:right] = inside.mean((0, 1)) + rng.normal(0, 6, inside.shape)
        else:
            other = faces.pictures[rng.integers(len(faces))].permute(1, 2, 0).numpy()
            corner = other[-24:, :24].copy()  # the lower left: clothes or a wall
            patch = torch.from_numpy(corner).permute(2, 0, 1)[None].float()
            patch = F.interpolate(patch, size=inside.shape[:2], mode="bilinear")[0]
            blank[top:bottom, left:right] = patch.permute(1, 2, 0).numpy()
        out.append(torch.from_numpy(blank).permute(2, 0, 1))
    return out


def backgrounds(faces: Faces, names: list[str], count: int, rng: np.random.Generator) -> Tensor:
    """uint8 (N, 3, 160, 160) without any whole face: a third each photographs, footage, and drawn."""
    photographs = faceless_pictures(names)
    tiles = [random_square(photographs[k % len(photographs)], rng) for k in range(count if photographs else 0)]
    tiles += beside_the_face(faces, count, rng)
    tiles += [drawn(rng) for _ in range(count // 2)]
    return torch.stack(tiles)


# -- canvases ------------------------------------------------------------------------------------------------


def take(pictures: Tensor, rows: Array) -> Tensor:
    """Rows of a uint8 stack as 0..1; five times faster than indexing with a tensor."""
    return torch.stack([pictures[int(row)] for row in rows]).float() / 255


class Canvases:
    """Endless random training pictures with their target maps."""

    def __init__(self, faces: Faces, background: Tensor, seed: int) -> None:
        self.faces = faces
        self.background = background
        self.rng = np.random.default_rng(seed)

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, 160, 160) 0..1 and boxes (B, 2, 3) in canvas pixels; half side 0 where there is no face."""
        rng = self.rng
        picture = self._backdrop(size)
        boxes = torch.zeros(size, 2, 3)
        bars = self._bars(size)
        for turn in range(2):
            present = rng.random(size) < (0.65, 0.25)[turn]
            boxes[:, turn] = self._paste(picture, bars, boxes[:, 0] if turn else None, present)
        picture = spoil(picture, rng)
        for n, (across, along) in enumerate(bars):
            picture[n, :, :along] = picture[n, :, SIZE - along :] = BAR
            picture[n, :, :, :across] = picture[n, :, :, SIZE - across :] = BAR
        return picture, boxes

    def _bars(self, size: int) -> list[tuple[int, int]]:
        """Letterbox bars (left and right, top and bottom) as face.py makes them for common aspect ratios."""
        out = []
        for _ in range(size):
            aspect = self.rng.choice([1, 1, 1, 16 / 9, 16 / 9, 4 / 3, 9 / 16])
            out.append((round(SIZE * max(0, 1 - aspect) / 2), round(SIZE * max(0, 1 - 1 / aspect) / 2)))
        return out

    def _backdrop(self, size: int) -> Tensor:
        out = take(self.background, self.rng.integers(len(self.background), size=size))
        for n in range(size):
            if self.rng.random() < 0.5:
                out[n] = out[n].flip(-1)
            if self.rng.random() < 0.3:  # part of another: rectangles as such mean nothing
                top, left = self.rng.integers(0, SIZE - 20, 2)
                height, width = self.rng.integers(20, SIZE, 2)
                other = self.background[int(self.rng.integers(len(self.background)))]
                window = (slice(None), slice(top, top + height), slice(left, left + width))
                out[n][window] = other[window].float() / 255
        return out

    def _paste(self, picture: Tensor, bars: list[tuple[int, int]], first: Tensor | None, present: Array) -> Tensor:
        rng = self.rng
        size = len(picture)
        pick = torch.from_numpy(rng.integers(len(self.faces), size=size))
        label = self.faces.box[pick]
        half = torch.from_numpy(np.exp(rng.uniform(np.log(0.07), np.log(0.85), size))).float() * SIZE / 2
        centre = torch.from_numpy(rng.uniform(0, 1, (size, 2))).float()
        for n, (across, along) in enumerate(bars):
            inner = torch.tensor([SIZE - 2 * across, SIZE - 2 * along])
            half[n] = half[n].clamp(max=float(inner.min()) * 0.5)
            margin = torch.minimum(half[n] * 0.35, inner * 0.5)  # most of the face is seen, if not all
            centre[n] = torch.tensor([across, along]) + margin + centre[n] * (inner - 2 * margin)
        turn = torch.from_numpy(np.deg2rad(rng.normal(0, 9, size))).float()
        flip = torch.from_numpy(rng.choice([-1.0, 1.0], size)).float()
        if first is None:  # the whole crop as it is, filling the canvas: what a webcam or a prepared clip shows
            whole = torch.from_numpy(rng.random(size) < 0.15)
            zoom = torch.from_numpy(np.exp(rng.uniform(-0.05, 0.25, size))).float()
            half = torch.where(whole, label[:, 2] * SIZE / 2 * zoom, half)
            at = SIZE / 2 + torch.stack([label[:, 0] * flip, label[:, 1]], 1) * SIZE / 2 * zoom[:, None]
            centre = torch.where(whole[:, None], at, centre)
            turn = torch.where(whole, turn * 0.3, turn)
        keep = torch.from_numpy(present.copy())
        if first is not None:
            apart = (centre - first[:, :2]).abs().amax(1)
            keep &= (first[:, 2] == 0) | (apart > 1.3 * (half + first[:, 2]))
        per_unit = half / label[:, 2]  # canvas pixels per crop unit
        matrix = torch.zeros(size, 2, 3)  # canvas pixel -> crop unit, for affine sampling
        cos, sin = torch.cos(turn) / per_unit, torch.sin(turn) / per_unit
        matrix[:, 0, 0], matrix[:, 0, 1] = flip * cos, flip * sin
        matrix[:, 1, 0], matrix[:, 1, 1] = -sin, cos
        matrix[:, :, 2] = label[:, :2] - (matrix[:, :, :2] @ centre[:, :, None])[..., 0]
        axis = torch.arange(SIZE) + 0.5
        pixels = torch.stack([*torch.meshgrid(axis, axis, indexing="xy"), torch.ones(SIZE, SIZE)], -1)
        grid = torch.einsum("hwk,nck->nhwc", pixels, matrix)
        level = (torch.log2(SIZE / 2 / per_unit).round().clamp(0, len(self.faces.levels) - 1)).long()
        for number, pictures in enumerate(self.faces.levels):
            rows = torch.nonzero(keep & (level == number))[:, 0]
            if len(rows):
                face = F.grid_sample(
                    take(pictures, pick[rows].numpy()), grid[rows], align_corners=False, padding_mode="border"
                )
                mask = self._masks(grid[rows], label[rows], per_unit[rows])
                picture[rows] = picture[rows] * (1 - mask) + face * mask
        return torch.cat([centre, half[:, None]], 1) * keep[:, None]

    def _masks(self, grid: Tensor, label: Tensor, per_unit: Tensor) -> Tensor:
        """The whole crop, a smaller rectangle around the face, or a soft oval around the head."""
        rng = self.rng
        masks = []
        for n in range(len(grid)):
            x, y = grid[n, ..., 0], grid[n, ..., 1]
            cx, cy, half = label[n].tolist()
            soft = float(per_unit[n]) * rng.choice([0.3, 1.0])  # edge of a pixel or softer
            kind = rng.random()
            if kind < 0.35:
                inside = 1 - torch.maximum(x.abs(), y.abs())
            elif kind < 0.65:
                low = [max(-1, c - r * half * rng.uniform(1, 2.2)) for c, r in ((cx, 0.85), (cy, 0.95))]
                high = [min(1, c + r * half * rng.uniform(1, 2.2)) for c, r in ((cx, 0.85), (cy, 1.1))]
                inside = torch.minimum(torch.minimum(x - low[0], high[0] - x), torch.minimum(y - low[1], high[1] - y))
            else:
                rx, ry = half * rng.uniform(0.95, 1.6), half * rng.uniform(1.25, 1.8)
                inside = (1 - torch.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)) * half
                inside = torch.minimum(inside, 1 - torch.maximum(x.abs(), y.abs()))
                soft *= rng.choice([0.3, 1.0])
            masks.append((inside * soft + 0.5).clamp(0, 1))
        return torch.stack(masks)[:, None]


def spoil(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """What cameras, lamps and codecs do: exposure, tint, grey, gamma, blur, blocks, noise."""
    size = len(picture)

    def some(chance: float) -> Tensor:
        return torch.from_numpy((rng.random(size) < chance).astype(np.float32))[:, None, None, None]

    def amount(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (size, channels, 1, 1)).astype(np.float32))

    picture = picture.clamp(1e-4, 1) ** torch.exp(some(0.5) * amount(-0.6, 0.6))
    grey = picture.mean(1, keepdim=True)
    picture = torch.lerp(picture, grey, torch.maximum(some(0.15), some(0.3) * amount(0, 0.7)))
    picture = picture * (1 + some(0.5) * amount(-0.15, 0.15, 3))
    picture = 0.5 + (picture - 0.5) * torch.exp(some(0.7) * amount(-0.5, 0.3)) + some(0.7) * amount(-0.2, 0.2)
    for n in np.flatnonzero(rng.random(size) < 0.3):
        factor, mode = ((2, "bilinear"), (4, "bilinear"), (4, "nearest"))[rng.integers(3)]
        coarse = F.avg_pool2d(picture[n : n + 1], factor)
        picture[n] = torch.lerp(
            picture[n], F.interpolate(coarse, scale_factor=float(factor), mode=mode)[0], rng.uniform(0.2, 0.9)
        )
    noise = torch.from_numpy(rng.standard_normal(picture.shape, dtype=np.float32))
    return (picture + noise * some(0.3) * amount(0.01, 0.08)).clamp(0, 1)


# -- loss, labels of photographs, figures --------------------------------------------------------------------


def detection_loss(heat: Tensor, box: Tensor, boxes: Tensor) -> Tensor:
    """Focal loss on the heatmap (CornerNet's), and distance of the box near each centre. boxes (B, F, 3) in pixels."""
    cells = SIZE // STRIDE
    middle = (torch.arange(cells) + 0.5) * STRIDE
    offset_x = (boxes[..., 0, None] - middle) / STRIDE  # (B, F, cells)
    offset_y = (boxes[..., 1, None] - middle) / STRIDE
    half = boxes[..., 2] / STRIDE
    column = (boxes[..., 0] / STRIDE).floor().clamp(0, cells - 1) + 0.5
    row = (boxes[..., 1] / STRIDE).floor().clamp(0, cells - 1) + 0.5
    width = 0.5 + 0.1 * half
    near_x = ((middle / STRIDE - column[..., None]) / width[..., None]) ** 2
    near_y = ((middle / STRIDE - row[..., None]) / width[..., None]) ** 2
    bump = torch.exp(-0.5 * (near_y[..., :, None] + near_x[..., None, :])) * (half > 0)[..., None, None]
    target, owner = bump.max(1)  # (B, cells, cells)
    chance = heat[:, 0].sigmoid().clamp(1e-5, 1 - 1e-5)
    hit = (1 - chance) ** 2 * chance.log() * (target > 0.999)
    miss = chance**2 * (1 - chance).log() * (1 - target) ** 4
    faces = (half > 0).sum().clamp(min=1)
    weight = torch.where(target > 0.3, target, 0.0)
    pick = owner[:, None]
    wanted_x = offset_x[:, :, None, :].expand(-1, -1, cells, -1).gather(1, pick)[:, 0]
    wanted_y = offset_y[:, :, :, None].expand(-1, -1, -1, cells).gather(1, pick)[:, 0]
    wanted_half = half.clamp(min=0.1)[:, :, None, None].expand(-1, -1, cells, cells).gather(1, pick)[:, 0]
    centre = (box[:, 0] - wanted_x).abs() + (box[:, 1] - wanted_y).abs()
    distance = centre / wanted_half + (box[:, 2] - wanted_half.log()).abs()  # relative to the face: as IoU counts it
    return -(hit + miss).sum() / faces + 2 * (weight * distance).sum() / weight.sum().clamp(min=1)


@torch.no_grad()
def find(model: Detector, pictures: Tensor, threshold: float) -> list[Array]:
    """`decode_faces` of every picture (N, 3, 160, 160) 0..1."""
    out = []
    for part in pictures.split(64):
        heat, box = model(part)
        out += [decode_faces(h[0].numpy(), b.numpy(), threshold) for h, b in zip(heat, box, strict=True)]
    return out


def stills_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jpg")) + sorted(folder.glob("*.png"))


def label_stills(model: Detector, folder: Path) -> Faces | None:
    """Photographs with exactly one sure face, and the network's own box of it, averaged over the mirrored picture."""
    pictures, boxes = [], []
    for path in stills_in(folder):
        image = read_picture(path)
        picture = torch.from_numpy(crop(image, Square.covering(image.shape[1::-1]), SIZE)).permute(2, 0, 1)
        pair = torch.stack([picture, picture.flip(-1)]).float() / 255
        found, mirrored = find(model, pair, 0.3)
        if len(found) == len(mirrored) == 1 and max(found[0, 3], mirrored[0, 3]) > 0.5:
            other = mirrored[0, :3] * np.array([-1, 1, 1], np.float32)
            if abs(found[0, :3] - other).max() < 0.12:
                pictures.append(picture)
                boxes.append((found[0, :3] + other) / 2)
    return Faces(torch.stack(pictures), torch.from_numpy(np.stack(boxes))) if pictures else None


def hard_negatives(model: Detector, pictures: Tensor) -> Tensor:
    """Those faceless pictures (N, 3, 160, 160) uint8 in which the network half believes to see a face."""
    found = find(model, pictures.float() / 255, 0.15)
    return pictures[torch.tensor([len(faces) > 0 for faces in found])]


def overlap(a: Array, b: Array) -> float:
    """Intersection over union of two squares (x, y, half side)."""
    sides = [max(0.0, min(a[k] + a[2], b[k] + b[2]) - max(a[k] - a[2], b[k] - b[2])) for k in (0, 1)]
    both = sides[0] * sides[1]
    return float(both / (4 * a[2] ** 2 + 4 * b[2] ** 2 - both))


def measure(model: Detector, faces: Faces, threshold: float, seed: int = 1) -> dict[str, float]:
    """Of one look, at IoU 0.5: recall on validation people, whole and pasted by size; false positives per picture."""
    model.eval()
    rng = np.random.default_rng(seed)
    out: dict[str, float] = {}
    found = find(model, faces.pictures.float() / 255, threshold)
    best = [max((overlap(f, t) for f in got), default=0.0) for got, t in zip(found, faces.box.numpy(), strict=True)]
    out["recall_whole"] = float(np.mean(np.array(best) >= 0.5))
    out["iou_whole"] = float(np.median(best))
    out["extra_whole"] = float(np.mean([sum(overlap(f, t) < 0.5 for f in g) for g, t in
                                        zip(found, faces.box.numpy(), strict=True)]))  # fmt: skip
    plain = backgrounds(faces, HELD_OUT, 300, rng)
    canvases = Canvases(faces, plain, seed)
    ious: list[float] = []
    sizes: list[float] = []
    extra = total = 0
    for _ in range(12):
        picture, boxes = canvases.batch(64)
        for got, truth in zip(find(model, picture, threshold), boxes.numpy(), strict=True):
            units = [np.array([t[0] / SIZE * 2 - 1, t[1] / SIZE * 2 - 1, t[2] / SIZE * 2]) for t in truth if t[2] > 0]
            ious += [max((overlap(f, t) for f in got), default=0.0) for t in units]
            sizes += [float(t[2]) for t in units]
            extra += sum(all(overlap(f, t) < 0.3 for t in units) for f in got)
            total += 1
    iou, share = np.array(ious), np.array(sizes)
    for low, high in ((0.07, 0.12), (0.12, 0.25), (0.25, 0.5), (0.5, 1.1)):
        out[f"recall_{low:.2f}_{high:.2f}"] = float(np.mean(iou[(share >= low) & (share < high)] >= 0.5))
    out["false_per_canvas"] = extra / total
    out["false_per_faceless"] = float(np.mean([len(got) for got in find(model, plain.float() / 255, threshold)]))
    unseen = faceless_pictures(HELD_OUT)
    if unseen:
        tiles = torch.stack([random_square(unseen[k % len(unseen)], rng) for k in range(400)])
        out["false_per_unseen_photo"] = float(np.mean([len(g) for g in find(model, tiles.float() / 255, threshold)]))
    return out


def averaged(mean: torch.optim.swa_utils.AveragedModel) -> Detector:
    """The network that holds the running mean, ready to use."""
    assert isinstance(mean.module, Detector)
    return mean.module.eval()


def train(options: argparse.Namespace) -> Detector:
    """Time-boxed training; returns the running mean of the weights."""
    console = Console(stderr=True)
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    model = Detector()
    if options.start:
        try:
            model.load_state_dict(read_weights(options.start))
        except RuntimeError:  # it lists every weight there is
            raise PackError(f"{options.start} holds other weights than the face detector's.") from None
    faces = load_faces(options.data, "train", per_clip=24, cache=options.cache)
    names = [name for name in FACELESS if name not in HELD_OUT]
    canvases = Canvases(faces, backgrounds(faces, names, 1500, rng), options.seed)
    mean = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
    )
    optimizer = torch.optim.AdamW(model.parameters(), options.rate, weight_decay=0.01)
    console.print(f"{len(faces)} faces, {len(canvases.background)} backgrounds")
    started = time.thread_time()  # a busy machine gives as many steps, later
    done, joined, steps, recent = 0.0, False, 0, 0.0
    replay: deque[tuple[Tensor, Tensor]] = deque(maxlen=16)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("detector", total=1.0)
        while done < 1:
            done = min(1.0, (time.thread_time() - started) / 60 / max(options.minutes, 1e-3))
            if not joined and (options.start or done > 0.5):
                joined = True
                sure = [label_stills(averaged(mean), folder) for folder in options.stills]
                for more in (extra for extra in sure if extra is not None):
                    canvases.faces = canvases.faces.plus(Faces(more.pictures.repeat(4, 1, 1, 1), more.box.repeat(4, 1)))
                    console.print(f"{len(more)} photographs joined")
                wrong = hard_negatives(averaged(mean), backgrounds(faces, names, 1500, rng))
                canvases.background = torch.cat([canvases.background, *[wrong] * 4])
                console.print(f"{len(wrong)} backgrounds that looked like faces joined")
            for group in optimizer.param_groups:
                slope = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
                group["lr"] = options.rate * min(1.0, (steps + 1) / 100) * slope
            if (
                steps % 2 and len(replay) > 4
            ):  # making a canvas costs as much as learning from it: see each mirrored too
                picture, boxes = mirrored(*replay[int(rng.integers(len(replay)))])
            else:
                picture, boxes = canvases.batch(options.batch)
                replay.append((picture, boxes))
            model.train()
            heat, box = model.maps(picture.contiguous(memory_format=torch.channels_last))
            loss = detection_loss(heat, box, boxes)
            if not math.isfinite(float(loss.detach())):
                raise SystemExit(f"The loss is {float(loss.detach())} at step {steps}; lower --rate and start again.")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            mean.update_parameters(model)
            steps += 1
            recent += (float(loss.detach()) - recent) * max(0.02, 1 / steps)
            progress.update(bar, completed=done, description=f"step {steps} loss {recent:.3f}")
            if steps % 200 == 0:
                save(averaged(mean), options.out)
                console.print(f"step {steps} loss {recent:.3f} at {time.thread_time() - started:.0f} s")
    return averaged(mean)


def mirrored(picture: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Left and right exchanged."""
    flipped = boxes.clone()
    flipped[..., 0] = SIZE - flipped[..., 0]
    return picture.flip(-1), flipped


def save(model: Detector, path: Path) -> None:
    """Write the weights whole or not at all."""
    write_whole(path, to_bytes({name: value.contiguous() for name, value in model.state_dict().items()}))


def main(arguments: list[str] | None = None) -> int:
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m neuralcodec.training.detector", description=about)
    parser.add_argument("data", type=Path, help="folder written by neuralcodec.training.prepare")
    parser.add_argument("--minutes", type=float, default=12.0, help="training time, of the processor")
    parser.add_argument("--out", type=Path, default=Path("detector.safetensors"))
    parser.add_argument("--export", type=Path, help="also write the ONNX graph here")
    parser.add_argument("--stills", type=Path, nargs="*", default=[], help="folders of unlabelled portraits")
    parser.add_argument("--cache", type=Path, help="decoded frames of neuralcodec.training.train, to start sooner")
    parser.add_argument("--start", type=Path, help="go on from these weights")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for name, value in (("minutes", options.minutes), ("rate", options.rate)):
        if not 0 < value < math.inf:
            parser.error(f"--{name} is {value:g}; expected a number of more than 0")
    for name, value, least in (("batch", options.batch, 1), ("seed", options.seed, 0)):
        if value < least:
            parser.error(f"--{name} is {value}; expected {least} or more")
    for folder in options.stills:  # they are first needed when half of the time is over
        if not stills_in(folder):
            parser.error(f"--stills {folder} holds no .jpg or .png")
    try:
        for target in filter(None, (options.out, options.export)):
            target.parent.mkdir(parents=True, exist_ok=True)  # say so now rather than after the training
        model = train(options)
        save(model, options.out)
        if options.export:
            export_onnx(model, options.export)
        if (options.data / "val" / "labels").is_dir():
            faces = load_faces(options.data, "val", per_clip=40, cache=options.cache)
            print(json.dumps(measure(model, faces, THRESHOLD), indent=2))
    except (NeuralCodecError, OSError) as error:
        print(f"neuralcodec.training.detector: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"neuralcodec.training.detector: stopped; {options.out} is as it was saved last (every 200 steps), and "
              "--start goes on from it.", file=sys.stderr)  # fmt: skip
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
