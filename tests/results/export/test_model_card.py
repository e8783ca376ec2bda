"""The model card: every section from hand-made values, and hostile names."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mgdm_ray.config import DenoiserConfig, GuidanceSetting, GuideConfig, SamplingConfig
from mgdm_ray.results.export.export import Measured, model_card
from mgdm_ray.results.export.models_file import DenoiserFile, GuideFile, ModelsFile, TrainingData
from tests import golden

SHA = "0" * 64
DATA = TrainingData(
    name="phantom-ultrasound",
    source="phantom-ultrasound",
    task="binary",
    licence="Apache-2.0",
    citation="none",
    images_per_class=(12, 28),
    pictures=True,
)
CURVE = {
    "t": [0, 500, 999],
    "balanced_accuracy": [0.91, 0.7, 0.5],
    "ece": [0.05, 0.1, 0.25],
    "chance_below": 0.61,
}
FIGURES = ("fd", "fd_real", "copy_rate", "copy_rate_real", "flip_rate", "flip_rate_real")
JUDGED = {"images": 20.0, **{name: (i + 1) / 8 for i, name in enumerate(FIGURES)}}


def models(**changes: Any) -> ModelsFile:
    guide = GuideFile(sha256=SHA, key="b", parameters=4321, config=GuideConfig(dropout=0.2))
    fields: dict[str, Any] = {
        "written_by": {"mgdm-ray": "0.1.0"},
        "study": "my_study",
        "data": DATA,
        "classes": ("benign", "malignant"),
        "image_size": 28,
        "channels": 1,
        "denoiser": DenoiserFile(
            sha256=SHA, key="a", parameters=1234567, config=DenoiserConfig(steps=600)
        ),
        "guide": guide,
        "sampling": SamplingConfig(),
        "setting": GuidanceSetting(uncertainty_scale=0.25),
        "seed": 0,
    }
    return ModelsFile(**{**fields, **changes})


def section(card: str, title: str) -> str:
    """The text below a heading."""
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_whole_card() -> None:
    """Would catch a section that is lost or rendered with stray blank lines."""
    measured = Measured(CURVE, [0.71234], [("disturb", JUDGED), ("generate, resnet18", JUDGED)])
    golden.check("model-card", model_card(models(), measured))


def test_the_card_of_an_unguided_study_without_judge() -> None:
    """Would catch invented numbers where nothing was measured."""
    card = model_card(models(guide=None, setting=None), Measured())
    golden.check("model-card-unguided", card)
    assert {row[-1] for row in rows(section(card, "Recipe"))} == {"-"}
    assert "load_guide" not in card


def test_numbers_are_those_measured() -> None:
    """Would catch columns that are swapped, and a missing metric shown as 0."""
    lacking = {"images": 20.0, "fd": 3.25, "copy_rate": 0.125}
    measured = Measured(CURVE, [], [("disturb", JUDGED), ("perturb", lacking)])
    card = model_card(models(), measured)
    assert rows(section(card, "Measured: the guide over noise levels")) == [
        ["0", "0.910", "0.050"],
        ["500", "0.700", "0.100"],
        ["999", "0.500", "0.250"],
    ]
    none = "not measured"
    assert rows(section(card, "Measured: the study's own images")) == [
        ["disturb", "20", "0.125", "0.25", "0.375", "0.5", "0.625", "0.75"],
        ["perturb", "20", "3.25", none, "0.125", none, none, none],
    ]
    assert ["`uncertainty_scale`", "0.25"] in rows(section(card, "Guidance setting"))
    assert "perturb 0.125" in section(card, "Memorisation")


@pytest.mark.parametrize("reference", [("alignment", "rank_seeds"), ()])
def test_reproduced_faults_are_disclosed(reference: tuple[str, ...]) -> None:
    card = model_card(models(reference=reference), Measured())
    assert ("alignment, rank\\_seeds" in card) is bool(reference)


def test_hostile_names_stay_text() -> None:
    """Would catch a class name that breaks a table, adds a heading or a link, or carries HTML."""
    hostile = "a|b\n## Licence: mine\n[x](javascript:y) <img src=z> `run` *d* \\"
    data = DATA.model_copy(
        update={"name": hostile, "source": "other", "licence": hostile, "citation": hostile}
    )
    card = model_card(models(data=data, classes=(hostile, "plain")), Measured())
    plain = model_card(models(), Measured())
    assert card.count("\n") == plain.count("\n")
    headings = [line for line in card.splitlines() if line.startswith("#")]
    assert [h for h in headings if "Licence" in h] == [headings[0]]
    for sign in ("<img", "[x", "`run", "*d", "|b"):
        assert f"\\{sign}" in card
        assert not re.search(rf"(?<!\\){re.escape(sign)}", card)
