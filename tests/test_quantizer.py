"""The closed loop: both ends stay equal, errors stay bounded, broken tables are refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcodec.errors import PackError
from neuralcodec.motion import MotionParams
from neuralcodec.quantizer import (
    VALUE_LIMIT,
    MotionTables,
    Quantizer,
    State,
    Symbols,
    advance,
    at_new_reference,
    start_state,
)

VECTORS = Path(__file__).parent / "vectors"
RAW: dict[str, Any] = json.loads((VECTORS / "tables.json").read_text())
TABLES = MotionTables.load(RAW)
TRACK = np.load(VECTORS / "track_b.npz")["flat"].astype(np.float64)
LEVEL = st.integers(0, 7)
CANONICAL = np.load(VECTORS / "track_b.npz")["canonical"].astype(np.float64)


def motion(i: int) -> MotionParams:
    return MotionParams.from_flat(TRACK[i])


def pixel_error(level: int, components: int, frames: int = 60) -> float:
    quantizer, errors = Quantizer(TABLES), []
    for i in range(frames):
        quantizer.forward(motion(i), level=level, components=components)
        assert quantizer.last is not None
        gap = quantizer.last.keypoints(CANONICAL) - motion(i).keypoints(CANONICAL)
        errors.append((gap[:, :2] ** 2).sum(axis=1).mean() * 128**2)
    return float(np.sqrt(np.mean(errors)))


def test_load_from_path_equals_load_from_mapping() -> None:
    assert MotionTables.load(VECTORS / "tables.json").bank == TABLES.bank
    assert TABLES.size == 15 and TABLES.coded(2) == 15 and TABLES.coded(0) == 7


def test_transform_is_its_own_inverse_on_the_components() -> None:
    np.testing.assert_allclose(TABLES.synthesis @ TABLES.analysis, np.eye(TABLES.size), atol=5e-3)


def test_receiver_equals_sender_exactly_over_mixed_settings() -> None:
    sender, receiver = Quantizer(TABLES), Quantizer(TABLES)
    for i in range(len(TRACK)):
        symbols = sender.forward(motion(i), level=i % 8, components=i % 5, intra=i % 50 == 0)
        seen = receiver.inverse(symbols)
        assert sender.state == receiver.state
        assert sender.last is not None
        np.testing.assert_array_equal(sender.last.flat(), seen.flat())


def test_finer_levels_are_nearer() -> None:
    errors = [pixel_error(level, 7) for level in (0, 2, 4, 6)]
    assert errors == sorted(errors) and errors[-1] > 1.5 * errors[0]


def test_more_components_are_nearer() -> None:
    errors = [pixel_error(1, components) for components in (0, 1, 2)]
    assert errors == sorted(errors, reverse=True)


def test_first_frame_is_intra_and_last_is_none_before_it() -> None:
    quantizer = Quantizer(TABLES)
    assert quantizer.last is None
    assert quantizer.forward(motion(0), level=2, components=2).intra
    assert not quantizer.forward(motion(1), level=2, components=2).intra
    quantizer.reset()
    assert quantizer.last is None
    assert quantizer.forward(motion(2), level=2, components=2).intra


def test_intra_forgets_the_past() -> None:
    one, two = Quantizer(TABLES), Quantizer(TABLES)
    for i in range(20):
        one.forward(motion(i), level=3, components=2)
    one.forward(motion(30), level=1, components=2, intra=True)
    two.forward(motion(30), level=1, components=2, intra=True)
    assert one.state == two.state


def test_a_still_head_needs_no_symbols() -> None:
    quantizer = Quantizer(TABLES)
    for level in (2, 5):
        for _ in range(8):
            symbols = quantizer.forward(motion(5), level=level, components=7)
    assert not any(symbols.values)


def test_state_can_be_put_back_after_a_trial() -> None:
    quantizer = Quantizer(TABLES)
    quantizer.forward(motion(0), level=2, components=2)
    kept = quantizer.state
    first = quantizer.forward(motion(1), level=4, components=1)
    quantizer.state = kept
    assert quantizer.forward(motion(1), level=4, components=1) == first


def test_unsent_components_relax_toward_zero() -> None:
    state = State(*((1000,) * TABLES.size,) * 2, (0,) * TABLES.size)
    for _ in range(80):
        state = advance(TABLES, Symbols(2, 0, False, (0,) * 7, state))
    assert all(0 <= v <= 4 for v in state.values[7:])
    assert state.values[:7] == (1000,) * 7
    assert state.older[7:] == state.values[7:], "relaxing is no movement that momentum may continue"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_unusable_numbers_do_not_escape(bad: float) -> None:
    flat = TRACK[0].copy()
    flat[3] = bad
    quantizer = Quantizer(TABLES)
    quantizer.forward(MotionParams.from_flat(flat), level=0, components=7)
    assert all(abs(v) <= VALUE_LIMIT for v in quantizer.state.values)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(LEVEL, LEVEL, st.booleans(), st.integers(-32770, 32770)), max_size=30))
def test_state_stays_bounded_on_any_symbols(frames: list[tuple[int, int, bool, int]]) -> None:
    state = start_state(TABLES)
    for level, components, intra, q in frames:
        before = start_state(TABLES) if intra else state
        state = advance(TABLES, Symbols(level, components, intra, (q,) * TABLES.coded(components), before))
        assert all(abs(v) <= VALUE_LIMIT for v in state.values)
        assert len(state.values) == len(state.older) == len(state.activity) == TABLES.size
        assert all(0 <= a <= 15 * 16 * max(TABLES.levels) for a in state.activity)


def test_a_new_reference_forgets_the_scene_and_nothing_else(scene_tables: dict[str, Any]) -> None:
    tables = MotionTables.load(scene_tables)
    numbers = tuple(range(1, tables.size + 1))
    state = State(numbers, tuple(-n for n in numbers), tuple(5 * n for n in numbers))
    anew = at_new_reference(tables, state)
    scene = set(tables.scene_components)
    assert 0 < len(scene) < tables.size - 7 and min(scene) >= 7
    assert anew.values == tuple(0 if i in scene else n for i, n in enumerate(numbers))
    assert anew.older == tuple(0 if i in scene else -n for i, n in enumerate(numbers))
    assert anew.activity == state.activity
    assert at_new_reference(TABLES, state) is state, "tables without a scene have nothing to forget"


def test_scene_components_hold_the_scene_and_no_other_does(scene_tables: dict[str, Any]) -> None:
    tables = MotionTables.load(scene_tables)
    end = 7 + 3 * tables.keypoints
    scene = list(tables.scene_components)
    rest = [i for i in range(tables.size) if i not in scene]
    assert tables.flat_size == len(tables.mean) == end + 2 * tables.scene**2
    assert not tables.synthesis[scene, :end].any() and not tables.synthesis[rest, end:].any()
    assert not tables.analysis[:end, scene].any() and not tables.analysis[end:, rest].any()
    assert not tables.mean[end:].any(), "set back to zero means that nothing moved"


def test_a_scene_comes_through_and_is_zero_after_a_new_reference(
    scene_tables: dict[str, Any], scene_tracks: dict[str, np.ndarray]
) -> None:
    tables = MotionTables.load(scene_tables)
    sender, receiver = Quantizer(tables), Quantizer(tables)
    errors, sizes = [], []
    for i, row in enumerate(scene_tracks["track_a"][:90]):
        wanted = tables.motion(row)
        if i % 30 == 0 and i:
            for end in (sender, receiver):
                end.new_reference()
                assert not end.motion().scene.any()
        seen = receiver.inverse(sender.forward(wanted, level=0, components=7))
        assert sender.state == receiver.state and seen.scene.shape == (tables.scene**2, 2)
        errors.append(np.square(seen.scene - wanted.scene).sum())
        sizes.append(np.square(wanted.scene).sum())
    assert sum(errors) < 0.25 * sum(sizes)  # eight components of eighteen


def test_motion_without_a_scene_says_that_nothing_moved(scene_tables: dict[str, Any]) -> None:
    tables = MotionTables.load(scene_tables)
    said = replace(motion(3), scene=np.zeros((tables.scene**2, 2), np.float32))
    silent, outspoken = (Quantizer(tables).forward(m, level=0, components=7) for m in (motion(3), said))
    assert silent == outspoken and any(silent.values)
    assert not any(silent.values[i] for i in tables.scene_components)


def test_a_held_frame_after_a_new_reference_shows_nothing_moved(
    scene_tables: dict[str, Any], scene_tracks: dict[str, np.ndarray]
) -> None:
    tables = MotionTables.load(scene_tables)
    sender, receiver = Quantizer(tables), Quantizer(tables)
    receiver.inverse(sender.forward(tables.motion(scene_tracks["track_b"][29]), level=0, components=7))
    assert receiver.motion().scene.any()
    sender.new_reference()
    receiver.new_reference()
    seen = receiver.inverse(sender.hold(level=0, components=7))
    assert not seen.scene.any() and sender.state == receiver.state


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("scene", -3, "scene"),
        ("scene", 4, "mean"),
        ("scene", "many", "rebuild the pack"),
        ("scene_components", [3], "scene_components"),
        ("scene_components", [99], "scene_components"),
        ("scene_components", [8.5], "integers"),
    ],
)
def test_broken_scenes_are_refused_by_name(scene_tables: dict[str, Any], key: str, value: object, named: str) -> None:
    with pytest.raises(PackError, match=named):
        MotionTables.load({**scene_tables, key: value})


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("format", 2, "format"),
        ("levels", [1, 2], "levels"),
        ("levels", [0] * 8, "levels"),
        ("components", [99] * 8, "components"),
        ("mean", [0.0], "mean"),
        ("bank", [[1] * 37], "bank"),
        ("bank", [[0.5] * 37], "integers"),
        ("intra", [[999] * 15] * 8, "context maps"),
        ("predicted", [[[0]] * 15] * 8, "context maps"),
        ("momentum", [[64] * 15] * 8, "momentum"),
        ("synthesis", [[float("nan")] * 55] * 15, "transform"),
    ],
)
def test_broken_tables_are_refused_by_name(key: str, value: object, named: str) -> None:
    with pytest.raises(PackError, match=named):
        MotionTables.load({**RAW, key: value})


def test_missing_tables_and_missing_keys(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="rebuild the pack"):
        MotionTables.load(tmp_path / "none.json")
    with pytest.raises(PackError, match="bank"):
        MotionTables.load({k: v for k, v in RAW.items() if k != "bank"})
    for text in ("{not json", "[" * 100_000, '{"format": 1, "keypoints": Infinity}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(PackError, match="bad.json: not usable as motion tables"):
            MotionTables.load(tmp_path / "bad.json")
