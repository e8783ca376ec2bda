"""Logging in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from mgdm_ray.results.mlflow.tracker import Tracker
from mgdm_ray.storage.records import Record


class Mirror:
    """Logs records in a thread of its own, so that a slow MLflow never holds up the study.

    A context manager: leaving it waits until all is logged; leaving it with an exception drops
    what is waiting and says in MLflow that nobody works on the study any more, a later run takes
    it up again. ``connect`` makes the tracker; None logs nothing.
    """

    def __init__(self, connect: Callable[[], Tracker] | None) -> None:
        self._queue: queue.SimpleQueue[tuple[Record, Path | None] | None] = queue.SimpleQueue()
        self._connect = connect
        self._dropped = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def __enter__(self) -> Self:
        if self._connect:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._connect:
            return
        if kind is not None:
            self._dropped.set()
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def log(self, record: Record, artefact_folder: Path | None = None) -> None:
        """As ``Tracker.log``, later."""
        self._queue.put((record, artefact_folder))

    def _work(self) -> None:
        assert self._connect is not None
        try:
            first = self._queue.get()  # jobs run while the database is created
            if first is None:
                return
            tracker = self._connect()
            item: tuple[Record, Path | None] | None = first
            while item is not None and not self._dropped.is_set():
                tracker.log(*item)
                item = self._queue.get()
            if self._dropped.is_set():
                tracker.interrupt()
        except Exception as error:  # noqa: BLE001 - raised again where the study can see it
            self._error = error
