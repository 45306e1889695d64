"""A day-long call, frame by frame, without networks: do sender and receiver stay equal, and does memory stay flat?

``python -m benchmarks.endurance`` sends 24 h of simulated motion (2,160,000 frames at 25 fps): quantizer, entropy
coder, packet bytes, parser, entropy decoder, quantizer. After every frame the integer states of both ends must be
equal. Level and component count change now and then, intra frames come every two seconds and on a whim, references are
named by others too, which sets the scene back, and sequence numbers wrap.

``--state FILE`` saves where it is when it stops (``--minutes`` or Ctrl-C) and goes on from there the next time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.fuzz import resident_mb
from neuralcodec.entropy import EntropyCoder
from neuralcodec.pack import load_pack
from neuralcodec.packet import Motion, parse_packet
from neuralcodec.quantizer import MotionTables, Quantizer, State, start_state
from neuralcodec.runtime.engine import write_whole

DAY = 24 * 3600 * 25
INTRA_EVERY = 50
NAMED_EVERY = 17  # frames between references
CHECK_EVERY = 5000  # frames between looks at memory


class Call:
    """Both ends of a call and the head between them. Everything that carries on is in :meth:`save`."""

    def __init__(self, tables: MotionTables, seed: int) -> None:
        self.tables, self.seed, self.frame = tables, seed, 0
        self.coder = EntropyCoder(tables)
        self.sender, self.receiver = Quantizer(tables), Quantizer(tables)
        self.values = np.zeros(tables.size)  # of the head, units
        self.bytes_sent = self.drifted = 0
        self._dice = np.random.default_rng(seed)

    def step(self) -> None:
        """One frame from head to receiver."""
        if self.frame % 1000 == 0:  # seeded anew, so that a stopped call goes on as if it had not been
            self._dice = np.random.default_rng((self.seed, self.frame))
            self._noise = self._dice.normal(0, 1, (1000, self.tables.size))
        part = self.frame % 1000
        talking = (self.frame // 250) % 4 != 3  # now and then the head rests
        self.values = 0.98 * self.values + (9.0 if talking else 0.4) * self._noise[part]
        motion = self.tables.motion(self.tables.mean + self.values @ self.tables.synthesis)
        level, components = (0, 1, 2, 4, 7)[self.frame // 3000 % 5], (7, 6, 5, 3)[self.frame // 7000 % 4]
        intra = self.frame % INTRA_EVERY == 0 or part == 333
        reference = self.frame // NAMED_EVERY % 256 if intra or self.frame % NAMED_EVERY == 0 else None
        if reference is not None:
            self.sender.new_reference()
        symbols = self.sender.forward(motion, level=level, components=components, intra=intra)
        payload, number = self.coder.encode(symbols), self.frame % 256
        packet = Motion(number, level, components, payload, intra, reference, self.frame if intra else None)
        data = bytes(packet)
        self.bytes_sent += len(data)

        got = parse_packet(data)
        assert isinstance(got, Motion) and got.sequence == number
        if got.reference is not None:
            self.receiver.new_reference()
        before = start_state(self.tables) if got.intra else self.receiver.state
        self.receiver.inverse(
            self.coder.decode(got.payload, level=got.level, components=got.components, intra=got.intra, state=before)
        )
        self.drifted += self.receiver.state != self.sender.state
        self.frame += 1

    def save(self) -> dict[str, Any]:
        states = {name: [list(part) for part in (end.state.values, end.state.older, end.state.activity)]
                  for name, end in (("sender", self.sender), ("receiver", self.receiver))}  # fmt: skip
        head = {"seed": self.seed, "frame": self.frame, "bytes_sent": self.bytes_sent, "drifted": self.drifted}
        return head | {"values": self.values.tolist()} | states

    @classmethod
    def load(cls, tables: MotionTables, saved: dict[str, Any]) -> Call:
        call = cls(tables, saved["seed"])
        call.frame, call.bytes_sent, call.drifted = saved["frame"], saved["bytes_sent"], saved["drifted"]
        call.values = np.array(saved["values"], float).reshape(tables.size)
        call._dice = np.random.default_rng((call.seed, call.frame // 1000 * 1000))
        call._noise = call._dice.normal(0, 1, (1000, tables.size))
        for name, end in (("sender", call.sender), ("receiver", call.receiver)):
            end.state = State(*(tuple(part) for part in saved[name]))
            end._known = True
        return call


def main() -> int:
    parser = argparse.ArgumentParser(description="A day-long simulated call.")
    parser.add_argument("--frames", type=report.count, default=DAY)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--state", type=Path, help="go on from this file, and write it when stopping")
    parser.add_argument("--pack")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    machine, pack = report.machine(), load_pack(options.pack)
    tables = pack.tables
    call, before, growth = Call(tables, options.seed), 0.0, 0.0
    if options.state and options.state.exists():
        saved = report.load(options.state, "call", "minutes", "growth_mb")
        try:
            call, before, growth = Call.load(tables, saved["call"]), float(saved["minutes"]), float(saved["growth_mb"])
        except (LookupError, TypeError, ValueError):
            raise SystemExit(f"{options.state} holds no call of this pack; give another name with --state.") from None
    begin, levels = time.monotonic(), [resident_mb()]
    minutes = before
    try:
        while call.frame < options.frames and minutes - before < options.minutes and not call.drifted:
            for _ in range(min(CHECK_EVERY, options.frames - call.frame)):
                call.step()
            levels.append(resident_mb())
            minutes = before + (time.monotonic() - begin) / 60
            print(f"\r{call.frame:,} of {options.frames:,} frames, {minutes:.1f} min, {levels[-1]:.0f} MB, drift "
                  f"{call.drifted}", end="", file=sys.stderr)  # fmt: skip
    except KeyboardInterrupt:
        pass
    print(file=sys.stderr)
    growth = max(growth, levels[-1] - levels[min(2, len(levels) - 1)])
    result = {
        "frames": call.frame, "drifted": call.drifted, "bytes_a_frame": call.bytes_sent / max(1, call.frame),
        "minutes": minutes, "growth_mb": growth, "seed": call.seed,
    }  # fmt: skip
    print(
        f"{call.frame:,} frames ({call.frame / 90000:.1f} h), {result['bytes_a_frame']:.1f} bytes a frame with header: "
        f"{call.drifted} frames drifted, memory grew by {growth:.1f} MB, {minutes:.1f} min"
    )
    if options.state:
        write_whole(options.state, json.dumps(result | {"call": call.save()}).encode())
    if options.json:
        report.save(options.json, {"machine": machine, "pack": pack.id.hex(), **result})
    return bool(call.drifted)


if __name__ == "__main__":
    report.run(main)
