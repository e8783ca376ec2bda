"""The connection of a study to MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mgdm_ray.config import StudyConfig
from mgdm_ray.results.mlflow.tracker import Tracker
from mgdm_ray.seeding import content_key


@dataclass(frozen=True)
class StudyMlflow:
    config: StudyConfig
    plan_key: str
    root: Path
    """Of the storage."""
    fingerprints: Mapping[str, str]
    """Content of the datasets, by name."""

    @property
    def uri(self) -> str:
        return self.config.tracking.uri or f"sqlite:///{self.root}/mlflow.db"

    def connect(self) -> Tracker:
        """A new connection; takes seconds."""
        return Tracker(
            self.uri,
            str(self.root / "mlflow-artifacts"),
            self.config.tracking.experiment,
            self.config.name,
            # A changed study gets its own parent run, so that old and new cells do not mix.
            content_key(["study", self.config.name, self.plan_key]),
            datasets={
                d.name: {
                    "digest": self.fingerprints[d.name][:36],
                    "source": d.path or d.name,
                    **d.model_dump(mode="json", exclude={"name", "path"}),
                }
                for d in self.config.datasets
            },
        )
