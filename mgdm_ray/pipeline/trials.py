"""The trials of a search: rows of ``trials.json``, and records of kind ``trial``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mgdm_ray.seeding import content_key
from mgdm_ray.storage.records import Record, Status

TRIALS_FILE = "trials.json"


@dataclass(frozen=True)
class Trial:
    """A setting that a search tried."""

    number: int
    setting: Mapping[str, Any]
    status: Status
    reason: str = ""
    score: float | None = None
    """Mean over the proxy networks; of pruned trials over those that were trained. None: failed."""
    per_network: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    cost: float | None = None
    """Only of a search with two objectives, as ``front``."""
    front: bool = False
    """Whether it is on the Pareto front."""
    where: str = ""
    """Dataset of its search, or dataset and network."""

    @staticmethod
    def of(row: Mapping[str, Any], where: str = "") -> Trial:
        """From a row of ``trials.json``."""
        score, cost = row.get("score"), row.get("cost")
        return Trial(
            number=int(row["number"]),
            setting=dict(row["setting"]),
            status=row["status"],
            reason=str(row.get("reason", "")),
            score=None if score is None else float(score),
            per_network=dict(row.get("per_network") or {}),
            seconds=float(row.get("seconds") or 0.0),
            cost=None if cost is None else float(cost),
            front=bool(row.get("front")),
            where=where,
        )

    @staticmethod
    def of_record(record: Record, number: int, where: str = "") -> Trial:
        """From a record of kind ``trial``, which holds no scores of single networks."""
        found = record.metrics
        return Trial(
            number,
            record.setting,
            record.status,
            record.reason,
            found.get("score"),
            seconds=record.seconds,
            cost=found.get("cost"),
            front=bool(found.get("on_pareto_front")),
            where=where,
        )

    def row(self) -> dict[str, Any]:
        """As ``trials.json`` holds it."""
        row = {
            "number": self.number,
            "setting": self.setting,
            "seconds": self.seconds,
            "status": self.status,
            "reason": self.reason,
        }
        if self.score is not None:
            row |= {"score": self.score, "per_network": self.per_network}
        return row if self.cost is None else {**row, "cost": self.cost, "front": self.front}

    def record(self, search: Record) -> Record:
        """Its record, given that of its search."""
        metrics: dict[str, float] = {}
        if self.score is not None:
            scores = {f"score_{network}": value for network, value in self.per_network.items()}
            metrics = {"score": self.score, **scores}
        if self.cost is not None:
            metrics |= {"cost": self.cost, "on_pareto_front": float(self.front)}
        return replace(
            search,
            key=content_key(["trial", search.key, self.number]),
            kind="trial",
            status=self.status,
            reason=self.reason,
            setting=dict(self.setting),
            metrics=metrics,
            seconds=self.seconds,
        )


def read_trials(folder: Path, where: str = "") -> list[Trial]:
    """All trials of the search whose artefact is ``folder``."""
    rows = json.loads((folder / TRIALS_FILE).read_text(encoding="utf-8"))
    return [Trial.of(row, where) for row in rows]


def write_trials(folder: Path, trials: Sequence[Trial]) -> None:
    rows = [trial.row() for trial in trials]
    (folder / TRIALS_FILE).write_text(json.dumps(rows, allow_nan=False), encoding="utf-8")


def best_trial(trials: Iterable[Trial]) -> Trial | None:
    """The finished trial with the highest score; of equals the cheapest, then the first."""
    done = [t for t in trials if t.status == "done" and t.score is not None]
    return max(done, key=lambda t: (t.score, -(t.cost or 0.0)), default=None)
