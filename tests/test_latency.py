"""The latency benchmark's own parts; nothing here asserts a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import latency, peers, report
from neuralcodec.errors import MediaError


def test_the_renderer_is_timed_at_every_batch_size(portrait_clip: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "BATCH_RUNS", 1)
    times = latency.batches(portrait_clip[:2], pack=None, device="cpu", threads=1, sizes=(1, 3))
    assert {size: len(values) for size, values in times.items()} == {1: 1, 3: 1}
    assert latency.summary({"render": [1.0, 2.0, 9.0]})["render"] == {
        "median_ms": 2.0, "p95_ms": pytest.approx(8.3), "frames": 3,
    }  # fmt: skip


def test_a_folder_that_is_no_peer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modules").mkdir()
    with pytest.raises(MediaError, match="holds neither zhanglonghao1992's modules/generator.py nor LivePortrait's"):
        peers.load_peer(tmp_path)
    monkeypatch.setattr(
        "sys.argv", ["benchmarks/latency.py", "--frames", "12", "--device", "cpu", "--peer", str(tmp_path)]
    )
    with pytest.raises(SystemExit, match="benchmarks.latency: .* give the root of a checkout"):
        report.run(latency.main)
