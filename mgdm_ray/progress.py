"""What the user sees while a study runs: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed


class LiveRow(Protocol):
    """How far one running job is."""

    @property
    def label(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def note(self) -> str: ...


class Display:
    """Shows how many jobs are through and what runs now. Use as a context manager."""

    def __init__(self, total: int, finished: int, console: Console, every_s: float = 15.0) -> None:
        self.total, self.finished, self.console = total, finished, console
        self.every_s = every_s
        self.started = self.last = time.monotonic()
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
            self.main = self.bars.add_task("[bold]jobs", total=total, completed=finished, note="")

    def __enter__(self) -> Self:
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars:
            self.bars.stop()

    def job_ended(self, label: str, status: str, seconds: float, note: str) -> None:
        self.finished += 1
        mark = {"done": "done", "failed": "FAILED"}.get(status, status)
        self.say(f"[{self.finished}/{self.total}] {mark} {label} {seconds:.1f} s {note}".rstrip())
        if self.bars:
            self.bars.update(self.main, completed=self.finished)

    def say(self, text: str) -> None:
        if self.bars:
            self.bars.console.print(text, markup=False, highlight=False)
        else:
            # Not wrapped, and out at once: a log file has no width and is read while it grows.
            minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
            print(f"{minutes:3d}:{seconds:02d} {text}", file=self.console.file, flush=True)

    def live(self, rows: Mapping[str, LiveRow]) -> None:
        if self.bars is None:
            now = time.monotonic()
            if rows and now - self.last >= self.every_s:
                self.last = now
                moving = [_plain(row) for row in rows.values() if row.total]
                waiting = len(rows) - len(moving)
                moving += [f"{waiting} starting or waiting for a worker"] if waiting else []
                self.say("running: " + "; ".join(moving))
            return
        for key in [k for k in self.rows if k not in rows]:
            self.bars.remove_task(self.rows.pop(key))
        for key, row in rows.items():
            if key not in self.rows:
                self.rows[key] = self.bars.add_task(f"  {row.label}", total=None, note="")
            self.bars.update(
                self.rows[key], completed=row.done, total=row.total or None, note=row.note
            )


def _plain(row: LiveRow) -> str:
    return f"{row.label} {row.done}/{row.total} {row.note}".rstrip()
