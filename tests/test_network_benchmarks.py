"""The fuzzer finds what it should and passes what is sound, stopped endurance runs go on, links are reproducible."""

import argparse
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neuralcodec as nc
from benchmarks import bitstream, endurance, fuzz, loss
from neuralcodec.errors import BitstreamError
from neuralcodec.pack import load_pack
from neuralcodec.packet import parse_packet


def test_hostile_packets_give_frames_or_bitstream_errors() -> None:
    options = argparse.Namespace(packets=4000, seed=5, decode_every=8, render_every=0, minutes=5.0, pack=None)
    result = fuzz.run(options)
    assert result["failures"] == []
    counts = result["counts"]
    assert counts["parse taken"] + counts["parse refused"] == 4000 and counts["parse refused"] > 1000
    assert counts["decode, warm stream frames"] > 0 and counts["decode frames"] > 20  # it got past the parser


def test_the_pool_holds_every_kind_and_is_valid() -> None:
    packets, _ = fuzz.stream(load_pack(), 3)
    assert all(parse_packet(bytes(p)) == p for p in packets)
    kinds = {type(p).__name__ for p in packets}
    assert kinds == {
        "StreamHeader", "ReferencePart", "Parity", "Motion", "Bundle", "Update", "Feedback", "Extension", "End"
    }  # fmt: skip


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError(), AssertionError("y"), BitstreamError("")])
def test_what_the_fuzzer_calls_a_failure(error: Exception) -> None:
    def broken(data: bytes) -> None:
        raise error

    failures: list[object] = []
    fuzz.attempt(broken, b"\x01\x02", Counter(), "decode", failures)
    assert len(failures) == 1 and "0102" in str(failures[0])


def test_a_stopped_endurance_run_goes_on_as_if_it_had_not() -> None:
    tables = load_pack().tables
    whole, first = endurance.Call(tables, 4), endurance.Call(tables, 4)
    for _ in range(150):
        whole.step()
    for _ in range(70):
        first.step()
    second = endurance.Call.load(tables, json.loads(json.dumps(first.save())))
    for _ in range(80):
        second.step()
    assert second.save() == whole.save() and whole.drifted == 0 and whole.bytes_sent > 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"), ("[]", "lacks call"), ('{"minutes": 1, "growth_mb": 0}', "lacks call"),
        ('{"call": [], "minutes": 1, "growth_mb": 0}', "holds no call of this pack"),
        ('{"minutes": 1, "growth_mb": 0, "call": {"seed": 1, "frame": 0, "bytes_sent": 0, "drifted": 0, "values": []}}',
         "holds no call of this pack"),
    ],
)  # fmt: skip
def test_a_state_that_is_none_is_one_sentence_and_stays(
    content: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    path.write_text(content)
    monkeypatch.setattr("sys.argv", ["endurance", "--frames", "1", "--state", str(path)])
    with pytest.raises(SystemExit, match=rf"^{path} {words}.*; give "):
        endurance.main()
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("program", "few"), [(endurance, ["--frames"]), (fuzz, ["--decode-every", "0", "--render-every", "0", "--packets"])]
)
def test_a_record_says_on_which_machine_and_of_which_pack(
    program: Any, few: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "record.json"
    monkeypatch.setattr("sys.argv", ["program", *few, "20", "--json", str(path)])
    assert program.main() == 0
    found = json.loads(path.read_text())
    assert found["machine"]["versions"]["numpy"] == np.__version__ and found["pack"] == load_pack().id.hex()
    assert found.get("frames", found.get("packets")) == 20


def test_drift_is_noticed() -> None:
    call = endurance.Call(load_pack().tables, 4)
    for _ in range(10):
        call.step()
    call.receiver.state = call.receiver.state.__class__(
        (call.receiver.state.values[0] + 1, *call.receiver.state.values[1:]),
        call.receiver.state.older,
        call.receiver.state.activity,
    )
    call.step()
    assert call.drifted == 1


def test_the_link_loses_the_same_packets_every_time() -> None:
    def run(seed: int) -> list[bytes]:
        link = loss.Link(0.3, [(1.0, 1.5)], seed)
        for i in range(100):
            link.send(i / 25, bytes([i]))
        return link.receive(10.0)

    first = run(1)
    assert first == run(1) and first != run(2) and 40 < len(first) < 80
    assert not any(25 <= data[0] < 37 for data in first)


def test_recovery_is_measured_from_the_end_of_the_burst() -> None:
    clear, got = [30.0] * 50, [30.0] * 50
    got[25:42] = [20.0] * 17
    exact = [True] * 50
    exact[42] = False
    (milliseconds,) = loss.recoveries(clear, got, exact, [(1.0, 1.5)])
    assert milliseconds == pytest.approx(1000 * (43 / 25 + loss.DELAY + loss.BUFFER - 1.5))
    assert loss.recoveries(clear, got, [False] * 50, [(1.0, 1.5)]) == [float("inf")]
    assert len(loss.bursts_of(0.5, 10.0, 1)) == 3 and loss.bursts_of(0.5, 10.0, 1) == loss.bursts_of(0.5, 10.0, 1)


def test_x264_over_a_clear_link_shows_every_frame(tmp_path: Path) -> None:
    from benchmarks.clips import from_frames

    ramp = np.arange(128, dtype=np.uint8)
    frames = [np.stack([np.roll(np.tile(ramp, (128, 1)), 2 * i, 1)] * 3, -1) for i in range(12)]
    clip = from_frames("ramp", frames)
    shown = loss.x264(clip, loss.Link(0.0, (), 1), loss.Link(0.0, (), 2), argparse.Namespace(x264_kbps=60))
    assert min(loss.qualities(clip, shown.frames)) > 25 and shown.wire_kbps > shown.kbps > 0


def test_what_is_lost_on_the_way_is_counted_against_the_same_stream_received_whole(
    portrait_clip: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.clips import from_frames

    clip = from_frames("portrait", portrait_clip[:12])
    options = argparse.Namespace(kbps=6.0, pack=None, device="cpu", cores=1)
    clear = loss.ours(clip, loss.Link(0.0, (), 1), loss.Link(0.0, (), 2), options)
    assert clear.sent is not None and all((a == b).all() for a, b in zip(clear.sent, clear.frames, strict=True))
    gap = loss.ours(clip, loss.Link(0.0, [(0.2, 0.4)], 1), loss.Link(0.0, (), 2), options)
    same = [(a == b).all() for a, b in zip(gap.sent or [], gap.frames, strict=True)]
    assert all(same[:5]) and not all(same) and not all(gap.exact)
    # a steadied picture holds some of those before it; as the networks make it, exact motion is the same picture
    monkeypatch.setattr(nc, "Decoder", partial(nc.Decoder, steady=False))
    gap = loss.ours(clip, loss.Link(0.0, [(0.2, 0.4)], 1), loss.Link(0.0, (), 2), options)
    same = [(a == b).all() for a, b in zip(gap.sent or [], gap.frames, strict=True)]
    assert not all(same) and all(same[:5]) and same == gap.exact


def test_a_missed_bar_is_said() -> None:
    def row(name: str, **ours: object) -> str:
        options = argparse.Namespace(random=[0.1, 0.4], bursts=[0.5], codecs=["ours"])
        good = {"lost_on_the_way": 0.9, "lost": 5.0, "kbps": 4.0, "exact_share": 0.8}
        burst = good | {"recovery_ms": [900.0], "recovery_on_the_way_ms": [40.0, 250.0]}
        result = {"codec": "ours", "loss 0.1": good, "loss 0.4": good, "burst 0.5": burst}
        result[name] = {**result[name], **ours}
        return " ".join(verdict for *_, verdict in loss.summary([result], options))

    assert row("loss 0.1") == "pass  pass"  # there is no bar for a loss of 40 %
    assert row("loss 0.1", lost_on_the_way=1.1) == "FAIL  pass"
    assert row("burst 0.5", recovery_on_the_way_ms=[40.0, 251.0]) == "pass  FAIL"


def test_one_command_runs_all_that_the_bitstream_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    given = bitstream.commands(tmp_path / "nowhere", tmp_path, quick=True)
    given["fuzz"][1], given["endurance"][1] = "300", "200"
    monkeypatch.setattr(bitstream, "commands", lambda clips, out, *, quick: given)
    assert bitstream.main(["--clips", "nowhere", "--out", str(tmp_path)]) == 1
    said, complaints = capfd.readouterr()
    assert "300 packets" in said and "200 frames" in said and complaints.count("nowhere") == 2
    verdicts = [line.split()[:2] for line in said.splitlines() if line.endswith(("holds", "above"))]
    assert verdicts == [["coding:", "misses"], ["loss:", "misses"], ["fuzz:", "holds"], ["endurance:", "holds"]]
