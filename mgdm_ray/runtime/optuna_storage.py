"""Where Optuna keeps the trials of a search: an SQLite file, or objects beside the store."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend

from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.tasks.base import Context
from mgdm_ray.storage.remote.objects import Objects, is_url


def open_optuna_storage(job: Job, context: Context) -> BaseStorage:
    """The trials of ``job``, wherever the store is."""
    path = sqlite_path(job, context)
    if not is_url(context.storage):
        return sqlite_storage(path)
    prefix = f"optuna/{Path(context.study_folder).name}/{path.stem}"
    return JournalStorage(ObjectJournal(Objects(context.storage), prefix))


def sqlite_path(job: Job, context: Context) -> Path:
    """A database per search: a single process writes to it."""
    # No name of a dataset or network has a '+'.
    name = "+".join(part for part in (job.dataset, job.network) if part)
    return Path(context.study_folder) / "optuna" / f"{name}.db"


def sqlite_storage(path: Path) -> RDBStorage:
    """Optuna's trials in ``path``, which optuna-dashboard can read."""
    if not path.exists():
        # Created in one atomic step, because Optuna makes its tables in several.
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        RDBStorage(f"sqlite:///{temporary}").engine.dispose()
        temporary.rename(path)
    # The dashboard may hold a lock.
    return RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})


def optuna_study_name(job: Job) -> str:
    return f"{job.label} {job.key[:12]}"


class ObjectJournal(BaseJournalBackend):
    """Log entries as objects ``PREFIX/00000000``, ``PREFIX/00000001``, ...

    An append creates one object and never replaces one: all writers see one order of entries.
    Entries are JSON; nothing is unpickled.
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
        if not self._objects_read:  # all at once: there may be hundreds
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
