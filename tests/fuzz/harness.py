"""Runs the cases of one target in this process and watches what they do."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from mgdm_ray.config import InputError

CASE_SECONDS = 10
"""Of the processor: how busy the machine is with other things does not count."""
MEMORY_BYTES = 4 * 2**30
"""Of addresses (RLIMIT_AS) for the whole process: an array of a lying header does not fit."""
LONGEST_MESSAGE = 20_000
"""Characters: a message that nobody can read is a fault, too."""
KEEP_FAILURES = 20

Case = Callable[[random.Random, Path, Path], bool]
"""``case(rng, folder, canary)`` makes input in ``folder`` that would make ``canary`` if it were
run, gives it to our code, and tells whether it was accepted. InputError is a refusal."""


@dataclass
class Tally:
    """What the cases of a target came to."""

    target: str
    cases: int = 0
    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0
    peak_mb: float = 0.0
    failures: list[str] = field(default_factory=list)


class TooSlow(BaseException):
    """A case took longer than CASE_SECONDS. No Exception: nothing may swallow it."""


@contextmanager
def deadline(seconds: int) -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TooSlow(f"longer than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def limit_memory() -> None:
    """For the process that runs a target; its children inherit it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def listing(guarded: Path, without: Path) -> dict[str, int]:
    """Names and times of all below ``guarded`` but the folder of the case itself."""
    return {
        str(path): path.lstat().st_mtime_ns
        for path in guarded.rglob("*")
        if path != without and without not in path.parents
    }


def run_cases(target: str, case: Case, cases: int, seed: int, guarded: Path) -> Tally:
    """``cases`` inputs, each from a generator of its own number, each in ``guarded/case``.

    A failure names the number: ``one_case`` repeats it alone.
    """
    tally = Tally(target)
    folder, canary = guarded / "case", guarded / "canary"
    (guarded / "outside").mkdir()
    (guarded / "outside" / "secret").write_bytes(b"not yours")
    before = listing(guarded, folder)
    for number in range(cases):
        folder.mkdir()
        started = time.process_time()
        wrong = _one(tally, case, f"{target} {seed} {number}", folder, canary)
        tally.slowest = max(tally.slowest, time.process_time() - started)
        after = listing(guarded, folder)
        # The folder of the case comes and goes in ``guarded``, which is not in its own listing.
        if after != before:
            wrong = wrong or f"changed outside of its folder: {sorted(after.keys() ^ before)}"
            canary.unlink(missing_ok=True)
            before = listing(guarded, folder)
        if wrong and len(tally.failures) < KEEP_FAILURES:
            tally.failures.append(f"seed {seed} case {number}: {wrong}")
        shutil.rmtree(folder)
        tally.cases += 1
    tally.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return tally


def _one(tally: Tally, case: Case, name: str, folder: Path, canary: Path) -> str:
    """What went wrong; empty where the case was accepted or refused in words."""
    rng = random.Random(name)
    try:
        with deadline(CASE_SECONDS):
            accepted = case(rng, folder, canary)
    except InputError as error:
        tally.refused += 1
        message = str(error)
        if not message.strip() or len(message) > LONGEST_MESSAGE:
            return f"a message of {len(message)} characters"
        return ""
    except (Exception, TooSlow):  # noqa: BLE001 - whatever else comes is what is looked for
        return traceback.format_exc(limit=-6)
    tally.accepted += accepted
    tally.refused += not accepted
    return ""
