"""README.md of exported models: training data, recipe, measurements and limitations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mgdm_ray.config import SAMPLED_ARMS
from mgdm_ray.results.export.finished import FinishedStudy, setting_values
from mgdm_ray.results.export.models_file import CONFIG_FILE, DENOISER_FILE, GUIDE_FILE, ModelsFile


@dataclass(frozen=True)
class Measured:
    """The study's measurements of its models; empty if there are none."""

    curve: Mapping[str, Any] | None = None
    """``accuracy_over_t.json`` of the guide."""
    scores: Sequence[float] = ()
    """Validation scores of the searches that chose the setting."""
    judged: Sequence[tuple[str, Mapping[str, float]]] = ()
    """Arm (and network), metrics of its ``assess`` record."""

    @staticmethod
    def of(study: FinishedStudy, models: ModelsFile) -> Measured:
        curve = None
        if models.guide:
            path = study.store.folder("fit_guide", models.guide.key) / "accuracy_over_t.json"
            curve = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        setting = setting_values(models.sampling, models.setting)
        searches = study.records("search", models.data.name)
        return Measured(
            curve,
            [
                record.metrics["best_score"]
                for record in searches
                if all(record.setting.get(name) == value for name, value in setting.items())
            ],
            [
                (", ".join(filter(None, (record.arm, record.network))), record.metrics)
                for record in study.records("assess", models.data.name)
                if record.arm in SAMPLED_ARMS
            ],
        )


def model_card(models: ModelsFile, measured: Measured) -> str:
    """The card as Markdown. All values are escaped unless marked ``raw``: names and citations
    come from files."""
    environment = Environment(
        loader=PackageLoader("mgdm_ray.results.export", "."),
        finalize=_escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["raw"] = _Raw
    return environment.get_template("model_card.md.j2").render(
        models=models,
        measured=measured,
        setting=setting_values(models.sampling, models.setting) if models.setting else None,
        files={"config": CONFIG_FILE, "denoiser": DENOISER_FILE, "guide": GUIDE_FILE},
    )


class _Raw(str):
    """Text that is Markdown already."""


def _escaped(value: Any) -> Any:
    """Text as one line of Markdown that contains no markup or HTML."""
    if isinstance(value, _Raw) or not isinstance(value, str):
        return value
    return "".join(f"\\{c}" if c in "\\`*_|[]<>#" else c for c in " ".join(value.split()))
