"""Fit a pack's tables.json to motion tracks: the transform, the bank of frequency rows, the context maps. No networks.

    python -m export.fit_tables TRACKS... --out tables.json [--validate TRACKS...] [--section]

A track is an .npz of export.motion_tracks: ``flat`` float64 (N, 7 + 3K + 2M), the rows of ``MotionParams.flat``,
``canonical`` (K, 3), and ``fresh`` bool (N,), true where the scene starts from a new reference (nowhere if left out).
``--section`` prints the table section of FORMAT.md for these tables.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.files import reason
from neuralcodec.entropy import ALPHABET, SMALL, STARTS, EntropyCoder, near_sums
from neuralcodec.errors import DAMAGED_NPZ, NeuralCodecError, PackError
from neuralcodec.motion import POSE_SIZE, MotionParams
from neuralcodec.quantizer import (
    ACTIVITY_CAP,
    ACTIVITY_ONE,
    DEAD_ZONE,
    MOMENTUM_ONE,
    PRECISION,
    SYMBOL_LIMIT,
    TABLES_FORMAT,
    VALUE_LIMIT,
    MotionTables,
    Quantizer,
)
from neuralcodec.runtime.engine import write_whole

Array = NDArray[Any]

UNITS_PER_PIXEL = 64  # 1 unit = 1/64 pixel of a 256-pixel picture, rms over the keypoints
PICTURE_HALF = 128  # pixels from 0 to 1 in coded-picture coordinates
DEPTH_WEIGHT = 0.5  # z only shows through turning; measured: 0.25 saves 3 % of the bytes and blurs z by 15 %
LEVELS = (6, 9, 13, 19, 26, 38, 53, 75)  # steps in units, half an octave apart: 0.09 to 1.17 pixel
COMPONENTS = (0, 6, 12, 18, 26, 36, 48, 60)
SCENE_WEIGHT = 0.35  # of a pixel that a node is off, against one that a keypoint is off
MOMENTUM_RANGE = (0, 52)  # of 64: never backwards, and always dying out
OWN_THRESHOLDS = (1, 2, 4, 7, 10, 14, 19, 27, 42)  # of activity, 1/16 step
NEAR_THRESHOLDS = (1, 2, 3, 5, 7, 10, 14)
BANK_ROWS = 96
SHORTEST = 3  # frames of a track: how it changes must itself vary
# Eyes and lips carry the expression; the first keypoints of the `portrait` preset in its own order.
PORTRAIT_WEIGHTS = (2.0,) * 10 + (1.0,) * 6 + (2.0,) * 10 + (1.0,) * 4


@dataclass(frozen=True)
class Track:
    flat: Array  # float64 (N, 7 + 3K + 2M)
    canonical: Array  # float64 (K, 3)
    fresh: Array  # bool (N,)

    def motion(self, row: Array) -> MotionParams:
        return MotionParams.from_flat(row, len(self.canonical))


@dataclass(frozen=True)
class Transform:
    mean: Array  # (7 + 3K + 2M,)
    analysis: Array  # (7 + 3K + 2M, N)
    synthesis: Array  # (N, 7 + 3K + 2M)
    scene: Array  # int (S,): components of the scene


def load_tracks(paths: Iterable[str | Path], like: Track | None = None) -> list[Track]:
    """Every .npz among ``paths`` or in the folders among them, of one shape, which is that of ``like``."""
    files = [f for p in map(Path, paths) for f in (sorted(p.glob("*.npz")) if p.is_dir() else [p])]
    tracks: list[Track] = []
    for file in files:
        try:
            with np.load(file, allow_pickle=False) as data:
                flat = np.asarray(data["flat"], np.float64)
                flat = flat.reshape(len(flat), -1)
                fresh = np.asarray(data["fresh"], bool) if "fresh" in data else np.zeros(len(flat), bool)
                track = Track(flat, np.asarray(data["canonical"], np.float64).reshape(-1, 3), fresh)
        except DAMAGED_NPZ as error:
            raise PackError(
                f"{file} is not a track of export.motion_tracks, or it is cut short or damaged "
                f"({type(error).__name__})."
            ) from error
        first = like or (tracks[0] if tracks else track)
        count, width = len(first.canonical), first.flat.shape[-1]
        nodes = round(max(0, width - POSE_SIZE - 3 * count) / 2) ** 0.5
        if (
            len(track.canonical) != count
            or track.flat.shape[1:] != (width,)
            or track.fresh.shape != track.flat.shape[:1]
            or width != POSE_SIZE + 3 * count + 2 * round(nodes) ** 2
        ):
            raise PackError(
                f"{file} has flat {track.flat.shape}, canonical {track.canonical.shape} and fresh {track.fresh.shape}; "
                f"(N, {POSE_SIZE} + 3K + 2M), (K, 3) and (N,) are needed, K and M as in the other tracks."
            )
        if np.isfinite(track.flat).all() and np.isfinite(track.canonical).all() and len(track.flat) >= SHORTEST:
            tracks.append(track)
        else:
            print(f"skipped {file}: not finite, or fewer than {SHORTEST} frames", file=sys.stderr)
    if not tracks:
        raise PackError("No usable motion track (.npz with flat and canonical) was given; see export.motion_tracks.")
    return tracks


def fit_transform(tracks: Sequence[Track], *, size: int, weights: Sequence[float]) -> Transform:
    """The linear map to units. Pose: whitened by what it does to the keypoints, then turned so that the frame-to-frame
    changes are uncorrelated. Expression: what a regression on pose leaves, KLT in keypoint-error units. Scene: KLT of
    the mesh. The last two are merged by importance; ``size`` components of both are kept."""
    canonical = np.mean([t.canonical for t in tracks], axis=0)
    count = len(canonical)
    end = POSE_SIZE + 3 * count
    whole = np.concatenate([t.flat for t in tracks])
    flat, scene = whole[:, :end], whole[:, end:]
    steps = np.concatenate([np.diff(t.flat[:, :end], axis=0) for t in tracks])
    share = np.asarray(weights, np.float64) / np.mean(weights)
    amplitude = np.sqrt(np.stack([share, share, share * DEPTH_WEIGHT**2], axis=1)).reshape(-1)
    amplitude *= PICTURE_HALF * UNITS_PER_PIXEL / np.sqrt(count)

    mean = flat.mean(axis=0)
    mean[[0, 2, 3]] = 0.0  # left and right are alike; the data's bias is an accident
    slopes = np.zeros((POSE_SIZE, 3 * count))  # keypoint movement of each pose number, at the mean pose
    for i in range(POSE_SIZE):
        up, down = mean.copy(), mean.copy()
        up[i] += 1e-3
        down[i] -= 1e-3
        moved = [MotionParams.from_flat(v).keypoints(canonical).astype(np.float64).reshape(-1) for v in (up, down)]
        slopes[i] = (moved[0] - moved[1]) / 2e-3 * amplitude
    values, vectors = np.linalg.eigh(slopes @ slopes.T)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    _, turn = np.linalg.eigh(np.cov((steps[:, :POSE_SIZE] @ root).T))
    pose = root @ turn[:, ::-1]  # (7, 7): units of pose
    unpose = np.linalg.inv(pose)

    scale = amplitude * np.exp(mean[6])
    moved = (flat[:, :POSE_SIZE] - mean[:POSE_SIZE]) @ pose
    expression = (flat[:, POSE_SIZE:] - mean[POSE_SIZE:]) * scale
    leak = np.linalg.lstsq(moved, expression, rcond=None)[0]  # (7, 3K)
    rest = expression - moved @ leak
    ends = np.cumsum([len(t.flat) for t in tracks])[:-1]
    jumps = np.concatenate([np.diff(part, axis=0) for part in np.split(rest, ends)])
    # The spread says what an unsent component loses, the frame-to-frame change what a sent one costs: both, equally.
    energy, basis = np.linalg.eigh(rest.T @ rest / len(rest) + jumps.T @ jumps / len(jumps))
    around, mesh = _scene_basis(scene, ends)
    order = np.argsort(-np.concatenate([energy, around]), kind="stable")[:size]  # eigh's values rise; mixed now
    mine = order < len(energy)
    basis, mesh = basis[:, order[mine]], mesh[:, order[~mine] - len(energy)]

    head, rest_of = POSE_SIZE + np.flatnonzero(mine), POSE_SIZE + np.flatnonzero(~mine)
    n = POSE_SIZE + len(order)
    analysis, synthesis = np.zeros((whole.shape[1], n)), np.zeros((n, whole.shape[1]))
    analysis[:POSE_SIZE, :POSE_SIZE] = pose
    analysis[:POSE_SIZE, head] = -pose @ leak @ basis
    analysis[POSE_SIZE:end, head] = scale[:, None] * basis
    analysis[end:, rest_of] = mesh * _scene_amplitude(scene)
    synthesis[:POSE_SIZE, :POSE_SIZE] = unpose
    synthesis[:POSE_SIZE, POSE_SIZE:end] = leak / scale
    synthesis[head, POSE_SIZE:end] = basis.T / scale
    if len(rest_of):
        synthesis[rest_of, end:] = mesh.T / _scene_amplitude(scene)
    mean = np.concatenate([mean, np.zeros(scene.shape[1])])  # a new reference has moved nothing
    return Transform(_short(mean), _short(analysis), _short(synthesis), rest_of)


def _scene_amplitude(scene: Array) -> float:
    """Units for one coded-picture unit of a node, where the mesh is (N, 2M) flat."""
    return SCENE_WEIGHT * PICTURE_HALF * UNITS_PER_PIXEL / float(np.sqrt(max(1, scene.shape[1] // 2)))


def _scene_basis(scene: Array, ends: Array) -> tuple[Array, Array]:
    """Importance (2M,) of the scene's components and the components (2M, 2M), in units; see the expression's."""
    if not scene.size:
        return np.zeros(0), np.zeros((0, 0))
    units = scene * _scene_amplitude(scene)
    jumps = np.concatenate([np.diff(part, axis=0) for part in np.split(units, ends)])
    energy, basis = np.linalg.eigh(units.T @ units / len(units) + jumps.T @ jumps / len(jumps))
    return energy, basis


def closed_loop(
    tracks: Sequence[Track], transform: Transform, step: int, momentum: Array
) -> tuple[Array, Array, Array, Array]:
    """The quantizer over all tracks side by side, with every component sent and one intra frame each.

    Returns symbols (C, T, N), activity before each frame (C, T, N), states (C, T, N), and which frames exist (C, T).
    """
    length = max(len(t.flat) for t in tracks)
    exists = np.arange(length) < np.array([len(t.flat) for t in tracks])[:, None]
    n = transform.analysis.shape[1]
    wanted = np.zeros((len(tracks), length, n))
    for i, track in enumerate(tracks):
        wanted[i, : len(track.flat)] = (track.flat - transform.mean) @ transform.analysis
    state = np.zeros((len(tracks), n), np.int64)
    older = state
    memory = np.zeros_like(state)
    symbols, activity, states = (np.zeros(wanted.shape, np.int64) for _ in range(3))
    fresh = np.zeros(exists.shape, bool)
    for i, track in enumerate(tracks):
        fresh[i, : len(track.fresh)] = track.fresh
    for t in range(length):
        renewed = np.ix_(fresh[:, t], transform.scene)
        state, older = state.copy(), older.copy()
        state[renewed], older[renewed] = 0, 0
        guess = state + ((momentum * (state - older) + MOMENTUM_ONE // 2) // MOMENTUM_ONE)
        ratio = (np.clip(wanted[:, t], -VALUE_LIMIT, VALUE_LIMIT) - guess) / step
        size = np.minimum(np.floor(np.abs(ratio) + 0.5 - (DEAD_ZONE if t else 0.0)), SYMBOL_LIMIT)
        q = (size * np.sign(ratio)).astype(np.int64)
        activity[:, t] = memory
        older, state = state, np.clip(guess + q * step, -VALUE_LIMIT, VALUE_LIMIT)
        if not t:
            older = state
        one = ACTIVITY_ONE * step
        memory = memory + ((np.minimum(np.abs(q), ACTIVITY_CAP) * one - memory) >> 2) if t else memory + one // 2
        symbols[:, t], states[:, t] = q, state
    return symbols, activity, states, exists


def fit_momentum(tracks: Sequence[Track], transform: Transform, step: int) -> Array:
    """How much of the last movement each component repeats, in 1/64: least absolute error in the closed loop."""
    momentum = np.zeros(transform.analysis.shape[1], np.int64)
    for _ in range(2):
        _, _, states, exists = closed_loop(tracks, transform, step, momentum)
        move, error = [], []
        for i, track in enumerate(tracks):
            seen = states[i, : len(track.flat)]
            move.append((seen[1:-1] - seen[:-2]).astype(np.float64))
            error.append(((track.flat - transform.mean) @ transform.analysis)[2:] - seen[1:-1])
            renewed = np.ix_(np.flatnonzero(track.fresh[2:] | track.fresh[1:-1]), transform.scene)
            move[-1][renewed] = error[-1][renewed] = 0  # the scene starts anew there
        x, y = np.concatenate(move), np.concatenate(error)
        best = np.zeros(x.shape[1])
        for _ in range(8):
            weight = 1 / (step / 2 + np.abs(y - best * x))
            best = (weight * x * y).sum(axis=0) / ((weight * x * x).sum(axis=0) + 1e-9)
        momentum = np.clip(np.rint(best * MOMENTUM_ONE), MOMENTUM_RANGE[0], MOMENTUM_RANGE[1]).astype(np.int64)
    return momentum


def fit_tables(tracks: Sequence[Track], *, size: int = COMPONENTS[-1], weights: Sequence[float] = ()) -> dict[str, Any]:
    """The content of tables.json for these tracks."""
    count = len(tracks[0].canonical)
    if not weights:
        weights = PORTRAIT_WEIGHTS if count == len(PORTRAIT_WEIGHTS) else (1.0,) * count
    transform = fit_transform(tracks, size=min(size, tracks[0].flat.shape[1] - POSE_SIZE), weights=weights)
    contexts = (len(OWN_THRESHOLDS) + 1) * (len(NEAR_THRESHOLDS) + 1)
    momenta, predicted, intra = [], [], []
    for step in LEVELS:
        momenta.append(fit_momentum(tracks, transform, step))
        symbols, activity, _, exists = closed_loop(tracks, transform, step, momenta[-1])
        chosen = contexts_of(symbols, activity, step)
        first = np.zeros_like(exists)
        first[:, 0] = True
        predicted.append(_histograms(buckets_of(symbols), chosen, exists & ~first, contexts))
        # Every frame can be an intra frame, and there are too few first frames: code all of them from zero.
        alone = np.concatenate([(t.flat - transform.mean) @ transform.analysis for t in tracks])[::5]
        alone = np.rint(alone / step).astype(np.int64)[None]
        yes = np.ones(alone.shape[:2], bool)
        intra.append(_histograms(buckets_of(alone), np.zeros_like(alone), yes, 1))
    hist_p, hist_i = np.stack(predicted), np.stack(intra)  # (L, N, contexts, A), (L, N, 1, A)
    smooth = _smoothed(hist_p)
    cells = np.concatenate([smooth.reshape(-1, ALPHABET), _smoothed_intra(hist_i).reshape(-1, ALPHABET)])
    bank, rows = _cluster(cells, BANK_ROWS)
    split = rows[: smooth[..., 0].size].reshape(smooth.shape[:3])
    return {
        "format": TABLES_FORMAT,
        "keypoints": count,
        "scene": round(((len(transform.mean) - POSE_SIZE - 3 * count) // 2) ** 0.5),
        "scene_components": transform.scene.tolist(),
        "levels": list(LEVELS),
        "components": [min(c, transform.analysis.shape[1] - POSE_SIZE) for c in COMPONENTS],
        "momentum": np.array(momenta).tolist(),
        "own_thresholds": list(OWN_THRESHOLDS),
        "near_thresholds": list(NEAR_THRESHOLDS),
        "bank": bank.tolist(),
        "predicted": split.tolist(),
        "intra": rows[smooth[..., 0].size :].reshape(hist_i.shape[:2]).tolist(),
        "mean": transform.mean.tolist(),
        "analysis": transform.analysis.T.tolist(),
        "synthesis": transform.synthesis.tolist(),
    }


def buckets_of(symbols: Array) -> Array:
    """The alphabet's bucket of each residual (entropy.py), vectorised."""
    size = np.abs(symbols)
    m = np.where(size <= SMALL, size - 1, np.searchsorted(STARTS, size, "right") - 1)
    return np.asarray(np.where(size == 0, 0, 2 * m + np.where(symbols > 0, 1, 2)))


def contexts_of(symbols: Array, activity: Array, step: int) -> Array:
    """The context of each residual (entropy.py), vectorised."""
    own = np.searchsorted(np.array(OWN_THRESHOLDS) * step, activity, "right")
    return own * (len(NEAR_THRESHOLDS) + 1) + np.searchsorted(NEAR_THRESHOLDS, near_sums(symbols), "right")


def _histograms(buckets: Array, contexts: Array, exists: Array, count: int) -> Array:
    """Counts (N, contexts, alphabet), mirrored: motion to the left and to the right is alike."""
    n = buckets.shape[2]
    b, c = buckets[exists], contexts[exists]  # (M, N)
    index = (np.arange(n) * count + c) * ALPHABET + b
    counts = np.bincount(index.reshape(-1), minlength=n * count * ALPHABET).reshape(n, count, ALPHABET)
    both = counts.astype(np.float64)
    pairs = (both[..., 1::2] + both[..., 2::2]) / 2
    both[..., 1::2] = both[..., 2::2] = pairs
    return both


def _smoothed(counts: Array) -> Array:
    """Thin cells lean on the same context of all components, which is nearly right and well counted."""
    everyone = counts.sum(axis=1, keepdims=True)
    around = everyone + everyone.sum(axis=2, keepdims=True) * 1e-4 + 1e-6
    return np.asarray(counts + 24 * around / around.sum(axis=-1, keepdims=True))


def _smoothed_intra(counts: Array) -> Array:
    spread = counts.copy()  # neighbouring buckets of the same sign share a little
    spread[..., 3:] += 0.2 * counts[..., 1:-2]
    spread[..., 1:-2] += 0.2 * counts[..., 3:]
    return spread + 1e-3


def _cluster(cells: Array, rows: int, rounds: int = 14) -> tuple[Array, Array]:
    """Rows that code the cells in the fewest bits (Lloyd's algorithm in code length), and each cell's row."""
    weight = cells.sum(axis=1)
    share = cells / weight[:, None]
    order = np.argsort(-(share * np.log2(share + 1e-12)).sum(axis=1), kind="stable")
    edges = np.searchsorted(np.cumsum(np.sqrt(weight[order])), np.linspace(0, np.sqrt(weight).sum(), rows + 1))
    row_of = np.zeros(len(cells), np.int64)
    for r in range(rows):
        row_of[order[edges[r] : edges[r + 1]]] = r
    bank = np.zeros((rows, cells.shape[1]), np.int64)
    for _ in range(rounds):
        for r in range(rows):
            bank[r] = _integers(cells[row_of == r].sum(axis=0) + 1e-9)
        row_of = np.argmin(share @ -np.log2(bank.T / (1 << PRECISION)), axis=1)
    used = np.unique(row_of)
    return bank[used], np.searchsorted(used, row_of)


def _integers(counts: Array) -> Array:
    """Frequencies >= 1 that sum to 2**PRECISION."""
    total = 1 << PRECISION
    row = 1 + np.floor(counts / counts.sum() * (total - len(counts))).astype(np.int64)
    row[np.argmax(row)] += total - row.sum()
    return row


def _short(values: Array) -> Array:
    """Seven significant digits: what the file holds is what the fit used."""
    return np.asarray([float(f"{v:.7g}") for v in values.reshape(-1)]).reshape(values.shape)


def validated(tables: MotionTables, tracks: Sequence[Track], level: int, components: int) -> str:
    """One line of figures: tracks through the real quantizer and coder, one packet a frame, in-plane keypoint error."""
    coder, errors, excess = EntropyCoder(tables), [], []
    sizes: list[int] = []
    intra: list[int] = []
    for track in tracks:
        quantizer = Quantizer(tables)
        for row, new in zip(track.flat, track.fresh, strict=True):
            if new:
                quantizer.new_reference()
            symbols = quantizer.forward(track.motion(row), level=level, components=components)
            payload = coder.encode(symbols)
            (intra if symbols.intra else sizes).append(len(payload))
            excess.append(len(payload) - coder.ideal_bits(symbols) / 8)
            wanted, seen = track.motion(row), quantizer.motion()
            gap = seen.keypoints(track.canonical) - wanted.keypoints(track.canonical)
            errors.append(float((gap[:, :2] ** 2).sum(axis=1).mean()) * PICTURE_HALF**2)
    return (
        f"{level:5} {tables.levels[level]:4}  {tables.components[components]:10}  {np.mean(sizes):11.2f} "
        f"{np.percentile(sizes, 95):5.0f} {np.mean(intra):6.1f}  {np.mean(excess):10.2f}  "
        f"{np.sqrt(np.mean(errors)):14.3f}  {np.mean(np.sqrt(errors)):10.3f}"
    )


def section(tables: dict[str, Any]) -> str:
    """The table section of FORMAT.md."""
    lines = [
        f"- keypoints: {tables['keypoints']}; scene: {tables['scene']} nodes a side; components in the state: "
        f"{len(tables['synthesis'])}, {POSE_SIZE} of pose",
        f"- components of the scene: {', '.join(map(str, tables['scene_components'])) or 'none'}",
        f"- level steps (units): {', '.join(map(str, tables['levels']))}",
        f"- components after the pose by index: {', '.join(map(str, tables['components']))}",
        f"- own thresholds (1/16 step): {', '.join(map(str, tables['own_thresholds']))}",
        f"- near thresholds: {', '.join(map(str, tables['near_thresholds']))}",
        f"- bank: {len(tables['bank'])} rows of {ALPHABET} frequencies summing to 2^{PRECISION}",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.fit_tables", description=__doc__.splitlines()[0])
    parser.add_argument("tracks", nargs="+", help="folders or .npz files with motion tracks")
    parser.add_argument("--out", type=Path, required=True, help="tables.json to write")
    parser.add_argument("--validate", nargs="+", default=[], help="tracks to measure the tables on")
    parser.add_argument("--section", action="store_true", help="print the table section of FORMAT.md")
    options = parser.parse_args(arguments)
    try:
        tracks = load_tracks(options.tracks)
        held_out = load_tracks(options.validate, tracks[0]) if options.validate else []
        tables = fit_tables(tracks)
        write_whole(options.out, (json.dumps(tables, separators=(",", ":")) + "\n").encode())
    except (NeuralCodecError, OSError) as error:
        print(f"export.fit_tables: {reason(error)}", file=sys.stderr)
        return 1
    print(f"{options.out}: {options.out.stat().st_size} bytes, {len(tables['bank'])} rows", file=sys.stderr)
    if held_out:
        loaded = MotionTables.load(tables)
        print("level step  components  bytes: mean   p95  intra  over ideal   error px: rms  mean frame")
        for level in range(len(LEVELS)):
            for components in (len(COMPONENTS) - 3, len(COMPONENTS) - 1):
                print(validated(loaded, held_out, level, components), flush=True)
    if options.section:
        print(section(tables))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
