"""Logging to MLflow in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from mgdm_ray.results.mlflow.tracker import Tracker
from mgdm_ray.storage.records import Record


class Mirror:
    """Logs records in the background, so that a slow MLflow never holds up the study.

    A context manager: leaving it waits until all is logged and raises what went wrong. Leaving it
    with an exception drops what is waiting and marks the study's run as interrupted.
    """

    def __init__(self, connect: Callable[[], Tracker] | None) -> None:
        """``connect`` is called at the first record; None logs nothing."""
        self._connect = connect
        self._pool = ThreadPoolExecutor(1, "mlflow")
        self._tracker: Tracker | None = None
        self._dropped = False
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._dropped = True
            self._pool.submit(self._interrupt)
        self._pool.shutdown()
        if self._error is not None and kind is None:
            raise self._error

    def log(self, record: Record, artefact_folder: Path | None = None) -> None:
        """As ``Tracker.log``, later."""
        self._pool.submit(self._log, record, artefact_folder)

    def _log(self, record: Record, folder: Path | None) -> None:
        if self._connect is None or self._dropped or self._error is not None:
            return
        try:
            self._tracker = self._tracker or self._connect()
            self._tracker.log(record, folder)
        except Exception as error:  # noqa: BLE001 - raised by __exit__
            self._error = error

    def _interrupt(self) -> None:
        if self._tracker is not None and self._error is None:
            self._tracker.interrupt()
