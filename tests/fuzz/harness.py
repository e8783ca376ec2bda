"""Runs the cases of one target in this process, drawn and shrunk by Hypothesis, and guards them."""

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

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mgdm_ray.config import InputError

CASE_SECONDS = 10
"""Of the processor: how busy the machine is with other things does not count."""
MEMORY_BYTES = 4 * 2**30
"""Of addresses (RLIMIT_AS) for the whole process: an array of a lying header does not fit."""
LONGEST_MESSAGE = 20_000
"""Characters: a message that nobody can read is a fault, too."""

Case = Callable[[random.Random, Path, Path], bool]
"""``case(rng, folder, canary)`` makes input in ``folder`` that would make ``canary`` if it were
run, gives it to our code, and returns whether it was accepted. InputError is a refusal."""


@dataclass
class Tally:
    """What the cases of a target came to; shrinking a failure counts, too."""

    target: str
    cases: int = 0
    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0
    peak_mb: float = 0.0
    failures: list[str] = field(default_factory=list)


class TooSlow(BaseException):
    """A case took longer than CASE_SECONDS. No Exception: nothing may swallow it."""


class Fault(AssertionError):
    """What no case may do."""


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


def noise(rng: random.Random, count: int) -> bytes:
    """Bytes that no shrinking could make plainer: Hypothesis draws their seed only."""
    return random.Random(rng.getrandbits(32)).randbytes(count)


def listing(guarded: Path, without: Path) -> dict[str, int]:
    """Names and times of all below ``guarded`` but the folder of the case itself."""
    return {
        str(path): path.lstat().st_mtime_ns
        for path in guarded.rglob("*")
        if path != without and without not in path.parents
    }


def run_cases(target: str, case: Case, cases: int, seed: int, guarded: Path) -> Tally:
    """``cases`` inputs, each in ``guarded/case``; a failure is shrunk and says how to repeat it."""
    tally = Tally(target)
    folder, canary = guarded / "case", guarded / "canary"
    (guarded / "outside").mkdir()
    (guarded / "outside" / "secret").write_bytes(b"not yours")
    before = listing(guarded, folder)

    @hypothesis.seed(seed)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(st.randoms(use_true_random=False))
    def one(rng: random.Random) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        started = time.process_time()
        try:
            _run(tally, case, rng, folder, canary)
        finally:
            tally.cases += 1
            tally.slowest = max(tally.slowest, time.process_time() - started)
        # The folder of the case comes and goes in ``guarded``, which is not in its own listing.
        if (after := listing(guarded, folder)) != before:
            canary.unlink(missing_ok=True)
            raise Fault(f"changed outside of its folder: {sorted(after.keys() ^ before.keys())}")

    try:
        one()
    except Exception as error:  # noqa: BLE001 - whatever comes is what is looked for
        tally.failures.append(f"seed {seed}: {''.join(traceback.format_exception(error))}")
    tally.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return tally


def _run(tally: Tally, case: Case, rng: random.Random, folder: Path, canary: Path) -> None:
    """Raises Fault, or whatever else the case died of, unless it was accepted or refused."""
    try:
        with deadline(CASE_SECONDS):
            accepted = case(rng, folder, canary)
    except InputError as error:
        tally.refused += 1
        message = str(error)
        if not message.strip() or len(message) > LONGEST_MESSAGE:
            raise Fault(f"a message of {len(message)} characters") from None
    except TooSlow as slow:
        raise Fault(str(slow)) from slow
    else:
        tally.accepted += accepted
        tally.refused += not accepted
