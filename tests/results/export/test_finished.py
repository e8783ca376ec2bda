"""A finished study of several draws: what is taken away is of the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mgdm_ray.pipeline.job import DRAWN
from mgdm_ray.results.export.finished import FinishedStudy
from tests.conftest import TINY

STUDY = {**TINY, "search": None, "judge": {"network": "resnet18"}, "limits": {"copies": 0.5}}
DATASET = "phantom-ultrasound"


def opened(tmp_path: Path, resolved: dict[str, Any]) -> FinishedStudy:
    """By its name, as a run has left its resolved file."""
    folder = tmp_path / "runs" / "studies" / "tiny"
    folder.mkdir(parents=True)
    (folder / "study.resolved.yaml").write_text(yaml.safe_dump({**STUDY, **resolved}))
    return FinishedStudy.open("tiny", str(tmp_path / "runs"))


def test_a_study_run_before_there_were_draws_has_one(tmp_path: Path) -> None:
    """Would catch an old storage whose cells are not found, for a default that came later."""
    study = opened(tmp_path, {"seeds": 3})
    assert study.config.draws == "one"
    assert len(study.jobs("generate", DATASET)) == 1
    assert len({job.needs["images/0"] for job in study.jobs("fit_downstream", DATASET, "generate")}
               ) == 1  # fmt: skip


@pytest.mark.parametrize(("draws", "seeds", "first"), [("models", 2, None), ("images", [4, 2], 4)])
def test_models_and_images_are_of_the_first_draw(
    tmp_path: Path, draws: str, seeds: int | list[int], first: int | None
) -> None:
    """Would catch an arbitrary one of several models, and a default seed that is no draw's."""
    study = opened(tmp_path, {"draws": draws, "seeds": seeds})
    for kind in ("fit_denoiser", "fit_guide"):
        assert [job.seed for job in study.jobs(kind, DATASET)] == [None]
    for kind, arm in (("generate", None), ("decode", "disturb"), ("assess", "roundtrip")):
        [job] = study.jobs(kind, DATASET, arm)
        assert job.seed == first
    [generate] = study.jobs("generate", DATASET)
    assert study.config.seed_of(study.config.first_draw) == generate.inputs["seed"]
    every = [job for job in study.plan.jobs.values() if job.kind in DRAWN]
    assert len({job.seed for job in every}) > 1
