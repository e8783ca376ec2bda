"""Live progress: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

if TYPE_CHECKING:
    from mgdm_ray.runtime.job_task import Live

NAMED = 3
"""Waiting jobs named on one line."""
WAITING_EVERY_S = 60.0
"""Between two lines about the same waiting jobs."""
FEWEST_ENDED = 0.1
"""Share of the jobs that must have ended before a lower bound of the time left is shown."""


class Pace:
    """Time left, from the mean time of each kind of job in this run, at its concurrency so far.

    ``kinds``: one per job to do.
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        self.left = Counter(kinds)
        self.fewest = FEWEST_ENDED * self.left.total()
        self.jobs_ended = 0
        self.took: dict[str, list[float]] = {}

    def ended(self, kind: str, status: str, seconds: float) -> None:
        self.left[kind] -= 1
        self.jobs_ended += 1
        if status == "done":
            self.took.setdefault(kind, []).append(seconds)

    def rest(self, elapsed: float) -> str:
        """``about 4 min left``; ``at least`` if a kind has no finished job; empty if unknown."""
        busy = sum(map(sum, self.took.values()))
        known = {kind: n for kind, n in self.left.items() if n > 0 and kind in self.took}
        ahead = sum(n * sum(self.took[k]) / len(self.took[k]) for k, n in known.items())
        if not ahead or elapsed <= 0:
            return ""
        unseen = any(n > 0 and kind not in self.took for kind, n in self.left.items())
        if unseen and self.jobs_ended < self.fewest:
            return ""
        return f"{'at least' if unseen else 'about'} {_span(ahead * elapsed / busy)} left"


class Display:
    """Shows finished and running jobs and the time left; a context manager.

    ``finished`` jobs are known at the start; ``kinds``: one per job to do.
    """

    def __init__(
        self, finished: int, kinds: Iterable[str], console: Console, every_s: float = 15.0
    ) -> None:
        todo = list(kinds)
        self.total, self.finished, self.console = finished + len(todo), finished, console
        self.every_s, self.pace = every_s, Pace(todo)
        self.started = self.last = self.waited = time.monotonic()
        self.waiting = ""
        self.bars: Progress | None = None
        self.rows: dict[str, TaskID] = {}
        if console.is_terminal:
            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("[dim]{task.fields[note]}"),
                Elapsed(),
                console=console,
            )
            self.main = self.bars.add_task(
                "[bold]jobs", total=self.total, completed=finished, note=""
            )

    def __enter__(self) -> Self:
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars:
            self.bars.stop()

    def job_ended(self, kind: str, label: str, status: str, seconds: float, note: str) -> None:
        self.finished += 1
        self.pace.ended(kind, status, seconds)
        mark = {"done": "done", "failed": "FAILED"}.get(status, status)
        self.say(f"[{self.finished}/{self.total}] {mark} {label} {seconds:.1f} s {note}".rstrip())
        if self.bars:
            self.bars.update(self.main, completed=self.finished, note=self.rest())

    def rest(self) -> str:
        return self.pace.rest(time.monotonic() - self.started)

    def say(self, text: str) -> None:
        if self.bars:
            self.bars.console.print(text, markup=False, highlight=False)
        else:
            # Neither wrapped nor buffered: for log files.
            minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
            print(f"{minutes:3d}:{seconds:02d} {text}", file=self.console.file, flush=True)

    def live(self, rows: Mapping[str, Live]) -> None:
        if self.bars is None:
            now = time.monotonic()
            if rows and now - self.last >= self.every_s:
                running, waiting = _lines(rows.values())
                if waiting == self.waiting and now - self.waited < WAITING_EVERY_S:
                    waiting = ""
                else:
                    self.waiting, self.waited = waiting, now
                if running or waiting:
                    self.last = now
                    self.say("; ".join(filter(None, (running, waiting, self.rest()))))
            return
        for key in [k for k in self.rows if k not in rows]:
            self.bars.remove_task(self.rows.pop(key))
        for key, row in rows.items():
            if key not in self.rows:
                self.rows[key] = self.bars.add_task(f"  {row.label}", total=None, note="")
            self.bars.update(
                self.rows[key], completed=row.done, total=row.total or None, note=row.note
            )


def _lines(rows: Iterable[Live]) -> tuple[str, str]:
    """Running and waiting jobs; empty if there are none."""
    rows = list(rows)
    running = "; ".join(f"{r.label} {r.done}/{r.total} {r.note}".rstrip() for r in rows if r.total)
    waiting = [row.label for row in rows if not row.total]
    more = f" and {len(waiting) - NAMED} more" if len(waiting) > NAMED else ""
    names = f"starting or waiting for a worker: {', '.join(waiting[:NAMED])}{more}"
    return running and f"running: {running}", names if waiting else ""


def _span(seconds: float) -> str:
    """Whole minutes, or hours from 90 minutes."""
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"
