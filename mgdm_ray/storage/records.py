"""Records: one line of ``records.jsonl`` per job, trial and cell."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mgdm_ray.storage.files import replacing

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

log = logging.getLogger(__name__)

Status = Literal["done", "failed", "pruned", "refused"]
STATUSES: tuple[Status, ...] = ("done", "failed", "pruned", "refused")


# Prefixes of failure reasons that are not the job's own fault.
OUT_OF_MEMORY = "out of memory"
NO_SPACE = "no space left on the disk"
WORKER_DIED = "its worker died"
STORE_SILENT = "the object store does not answer"


@dataclass(frozen=True)
class Record:
    """The outcome of one job, trial or cell.

    ``kind`` is a job kind (``fit_denoiser`` ... ``fit_downstream``) or ``trial``. A *cell* is a
    ``fit_downstream`` record: dataset x network x arm x seed, its ``metrics`` measured on
    ``split``. ``metrics`` are finite. ``setting`` is the guidance setting used. Every status but
    ``done`` needs a ``reason``.
    """

    key: str
    kind: str
    status: Status
    reason: str = ""
    dataset: str | None = None
    network: str | None = None
    arm: str | None = None
    seed: int | None = None
    setting: dict[str, Any] = field(default_factory=dict)
    split: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"unknown status {self.status[:40]!r}; allowed: {', '.join(STATUSES)}")
        if self.status != "done" and not self.reason:
            raise ValueError(f"a record with status {self.status!r} needs a reason")

    @property
    def is_cell(self) -> bool:
        return self.kind == "fit_downstream"

    @property
    def is_transient(self) -> bool:
        """Whether the same job may succeed next time: a full disk, a dead machine."""
        root = self.reason.rpartition("which failed: ")[2]
        return self.status == "failed" and root.startswith((NO_SPACE, WORKER_DIED, STORE_SILENT))

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

    @staticmethod
    def from_dict(row: dict[str, Any]) -> Record:
        """Parse a row. Raises ValueError naming the keys that are unknown, missing or mistyped."""
        unknown = [key[:40] for key in sorted(set(row) - set(_TYPES))][:5]
        missing = sorted({"key", "kind", "status"} - set(row))
        if unknown or missing:
            raise ValueError(f"not a record: unknown keys {unknown}, missing keys {missing}")
        wrong = sorted(name for name, value in row.items() if not isinstance(value, _TYPES[name]))
        if not wrong and not all(
            isinstance(v, int | float) for v in row.get("metrics", {}).values()
        ):
            wrong = ["metrics"]
        if wrong:
            raise ValueError(f"not a record: {', '.join(wrong)} of another type")
        return Record(**row)


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("key", "kind", "status", "reason"), (str,)),
    **dict.fromkeys(("dataset", "network", "arm", "split", "git_commit"), (str, type(None))),
    **dict.fromkeys(("setting", "metrics", "versions"), (dict,)),
    "seed": (int, type(None)),
    "seconds": (int, float),
}
"""Types of a row's JSON values by field."""


def read_records(path: Path) -> list[Record]:
    """Read a ``records.jsonl``; of several lines with one key the last one counts.

    Damaged lines are skipped with a warning: the store has every record of a finished job.
    """
    if not path.exists():
        return []
    # A lost disk block must cost its lines only.
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows: dict[str, Record] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = Record.from_dict(json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            log.warning("%s:%d: skipped a damaged record: %s", path, number, error)
            continue
        rows[record.key] = record
    return list(rows.values())


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Replace ``path`` atomically by these records, sorted by kind and key."""
    rows = {record.key: record for record in records}
    text = "".join(r.to_json() + "\n" for r in sorted(rows.values(), key=lambda r: (r.kind, r.key)))
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_record(path: Path, record: Record) -> None:
    """Append a line, starting a new one if the last was torn. Not synced to disk."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        else:
            torn = False
        file.write(b"\n" * torn + record.to_json().encode() + b"\n")
