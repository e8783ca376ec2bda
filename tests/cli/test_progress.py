"""What is said while a study runs: what moves, what waits, and how long the rest may take."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import pytest
from rich.console import Console

from mgdm_ray.cli.progress import Display, Pace
from tests import golden


@dataclass
class Row:
    label: str
    done: int = 0
    total: int = 0
    note: str = ""


def told(pace: Pace, passed: float) -> tuple[str, ...]:
    """Whether the rest is an estimate or a bound, and the time."""
    found = re.match(r"(about|at least) (\S+ \w+)", pace.rest(passed))
    assert found is not None
    return found.groups()


def test_the_rest_is_what_jobs_of_the_kind_took() -> None:
    """Would catch failed jobs taken for quick ones, kinds mixed up, and jobs that run at once
    counted one after another: 2 cells of 30 s are left, and so far two ran at a time."""
    pace = Pace(["fit", "cell", "cell", "cell", "cell"])
    assert pace.rest(10) == ""
    pace.ended("fit", "done", 240)
    pace.ended("cell", "done", 30)
    pace.ended("cell", "failed", 0.1)
    assert told(pace, 135) == ("about", "1 min")  # 60 s of work, 270 s done in 135 s: 30 s
    assert told(pace, 1350) == ("about", "5 min")  # 270 s of work took 1350 s


def test_a_kind_that_never_ended_makes_it_a_least() -> None:
    """Would catch a promise while the longest kind of job has not been seen yet."""
    pace = Pace(["search", "cell", "cell"])
    pace.ended("cell", "done", 60)
    assert told(pace, 60) == ("at least", "1 min")
    pace.ended("cell", "done", 60)
    assert pace.rest(120) == "", "of the search nothing is known: at least 0 is no news"
    pace = Pace(["search", *["cell"] * 19])
    pace.ended("cell", "done", 60)
    assert pace.rest(60) == "", "1 of 20 jobs tells too little"
    pace.ended("cell", "done", 60)
    assert told(pace, 120) == ("at least", "17 min")


def test_long_waits_are_told_in_hours() -> None:
    pace = Pace(["cell"] * 101)
    pace.ended("cell", "done", 180)
    assert told(pace, 180) == ("about", "5.0 h")


def test_a_log_names_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a line that says only how many wait, so that nobody knows for what."""
    out = io.StringIO()
    with Display(3, ["cell"] * 5, Console(file=out, force_terminal=False), every_s=0) as display:
        display.live({"a": Row("search x"), "b": Row("cell y", 3, 60, "loss 0.5")})
        display.live({str(n): Row(f"job {n}") for n in range(5)})
        display.job_ended("cell", "cell y", "done", 2.0, "balanced accuracy 0.5")
        monkeypatch.setattr("mgdm_ray.cli.progress.time.monotonic", lambda: display.started + 2)
        display.live({"a": Row("search x")})
    golden.check("progress", "\n".join(line[7:] for line in out.getvalue().splitlines()))


def test_a_log_says_once_a_minute_that_the_same_jobs_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a screen full of equal lines while one job waits."""
    out = io.StringIO()
    with Display(0, ["cell"] * 2, Console(file=out, force_terminal=False), every_s=15) as display:
        start = display.started
        for seconds in range(1, 121):
            monkeypatch.setattr("mgdm_ray.cli.progress.time.monotonic", lambda s=seconds: start + s)
            display.live({"b": Row("b")} if seconds > 90 else {"a": Row("a")})
    assert [line.split()[0] for line in out.getvalue().splitlines()] == ["0:15", "1:15", "1:31"]


def test_a_terminal_has_a_bar_for_every_job() -> None:
    """Would catch the bars breaking: tests and logs have no terminal."""
    out = io.StringIO()
    with Display(0, ["cell"] * 2, Console(file=out, force_terminal=True, width=120)) as display:
        display.live({"a": Row("cell a", 3, 60, "loss 0.5"), "b": Row("search x")})
        display.job_ended("cell", "cell a", "done", 2.0, "")
        display.live({"b": Row("search x")})
    assert "[1/2] done cell a 2.0 s" in out.getvalue()
    assert "search x" in out.getvalue()
    assert "left" in out.getvalue()
