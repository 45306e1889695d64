"""Many measurements over several processes, resumable: what the cache holds is not done again. Knows no metric."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from benchmarks import points, report
from benchmarks.cache import Cache
from neuralcodec.errors import NeuralCodecError

TRIES = 9  # a native encoder that dies takes its process along, and that must not cost the run
# One measurement takes half a minute at most; SVT-AV1's threads sometimes wait for each other for ever (three times in
# 160 streams on a machine that had much else to do). With every try so much longer: some pictures are larger, and some
# machines have much else to do.
HANG_SECONDS = 240

Job = tuple[points.Setting, tuple[str, ...]]  # with the groups of figures it needs


def run(jobs: Sequence[Job], cache: Cache, workers: int, *, minutes: float | None = None) -> int:
    """Measure what is missing, in the order given; at most for so many minutes. How many are still missing then."""
    context = multiprocessing.get_context("spawn")  # a fork would copy native encoder and network threads
    end = None if minutes is None else time.monotonic() + 60 * minutes
    with report.progress() as bar:
        task = bar.add_task("measurements", total=len(jobs))
        for tries in range(1, TRIES + 1):
            missing = lacking(jobs, cache)
            bar.update(task, completed=len(jobs) - len(missing))
            if not missing:
                return 0
            try:
                with ProcessPoolExecutor(workers, mp_context=context, initializer=_alone) as pool:
                    futures = [pool.submit(_one, job, cache, end, tries * HANG_SECONDS) for job in missing]
                    left = 0
                    for future in as_completed(futures):
                        left += not future.result()
                        bar.advance(task)
                    return left
            except BrokenProcessPool:
                if tries < TRIES:
                    print("An encoder crashed or hung; trying what is missing again.", file=sys.stderr)
    raise NeuralCodecError(
        f"Encoders crashed or hung {TRIES} times. What was measured until then is kept: run this again for the rest."
    )


def lacking(jobs: Sequence[Job], cache: Cache) -> list[Job]:
    """Those of the jobs that the cache holds in part or not at all."""
    return [(setting, groups) for setting, groups in jobs if len(points.known(setting, cache, groups)) < len(groups)]


def collect(jobs: Sequence[Job], cache: Cache) -> list[dict[str, Any]]:
    """The points that are there, with the figures that are there."""
    found = [(setting, points.known(setting, cache, groups)) for setting, groups in jobs]
    return [points.measure(setting, cache, groups) for setting, groups in found if groups]


def _alone() -> None:
    """One thread a process, whatever library asks."""
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _one(job: Job, cache: Cache, end: float | None, seconds: int) -> bool:
    if end is not None and time.monotonic() > end:
        return False
    setting, groups = job
    alarm = getattr(signal, "alarm", lambda _: None)  # ends this process, native threads and all; not on Windows
    alarm(seconds)
    points.measure(setting, cache, groups)
    alarm(0)
    return True


def each(function: Callable[[Any], Any], arguments: Sequence[Any], workers: int, label: str) -> list[Any]:
    """``function`` of every argument, over processes, results in the order of the arguments."""
    context = multiprocessing.get_context("spawn")
    with report.progress() as bar, ProcessPoolExecutor(workers, mp_context=context, initializer=_alone) as pool:
        task = bar.add_task(label, total=len(arguments))
        futures = [pool.submit(function, argument) for argument in arguments]
        for _ in as_completed(futures):
            bar.advance(task)
        return [future.result() for future in futures]
