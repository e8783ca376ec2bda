"""SIGINT and SIGTERM end a study in order, whatever library is running when they arrive."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_interrupted = threading.Event()


def catch_signals() -> None:
    """Handle both signals; call again after ``ray.init``, which installs its own handlers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def forget_signals() -> None:
    _interrupted.clear()


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    # Remembered as well as raised: a library may swallow the exception.
    _interrupted.set()
    raise KeyboardInterrupt


def stop_if_interrupted() -> None:
    """Raise KeyboardInterrupt if a signal has arrived."""
    if _interrupted.is_set():
        raise KeyboardInterrupt
