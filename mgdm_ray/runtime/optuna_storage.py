"""Optuna's journal in an object store: for a search that may go on on another machine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from mgdm_ray.storage.remote.objects import Objects


class ObjectJournal(BaseJournalBackend):
    """Log entries as objects ``PREFIX/00000000``, ``PREFIX/00000001``, ...

    Each append is one object, created only where there is none, so that entries have one order
    whoever writes. Entries are JSON; nothing is unpickled.
    """

    def __init__(self, objects: Objects, prefix: str) -> None:
        self.objects, self.prefix = objects, prefix.rstrip("/")
        self._entries: list[dict[str, Any]] = []
        self._objects_read = 0

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        self._read_new()
        return self._entries[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        data = json.dumps(logs, allow_nan=False).encode()
        while not self.objects.create(self._name(self._objects_read), data):
            self._read_new()

    def _read_new(self) -> None:
        if not self._objects_read:  # all there is at once: a search may have hundreds
            names = sorted(self.objects.sizes(self.prefix))
            found = self.objects.read_all(names)
            for name in names:
                self._take(found[name])
        while True:
            try:
                self._take(self.objects.read(self._name(self._objects_read)))
            except FileNotFoundError:
                return

    def _take(self, data: bytes) -> None:
        self._entries += json.loads(data)
        self._objects_read += 1

    def _name(self, number: int) -> str:
        return f"{self.prefix}/{number:08d}"
