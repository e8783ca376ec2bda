"""What a plan says a study can resolve."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from mgdm_ray.config import DatasetConfig, PhantomConfig, StudyConfig
from mgdm_ray.data.load import data_source
from mgdm_ray.data.npz import SPLITS, npz_path
from mgdm_ray.evaluation.power_analysis import between, resolution, spread
from mgdm_ray.evaluation.stats.power import BETWEEN, Design, detectable, detectable_in_general
from tests.conftest import TINY

PAIRS = [("disturb", "duplicate")]


def study(**changes: Any) -> StudyConfig:
    return StudyConfig.model_validate({**TINY, **changes})


def cell(arm: str, seed: int, value: float, **inputs: Any) -> dict[str, Any]:
    record = {
        "kind": "fit_downstream", "dataset": "d", "network": "n", "arm": arm, "seed": seed,
        "metrics": {"balanced_accuracy": value},
    }  # fmt: skip
    return {"record": record, "inputs": {"dataset": {"name": "d"}, **inputs}}


def test_spread_of_finished_cells_by_hand() -> None:
    """Catches unpaired scores, pairs across settings, and a spread from a handful of cells.

    Differences 0.1, 0.3 (mean 0.2, squares 0.02) at one setting and 0, 0, 0.6, 0 (mean 0.15,
    squares 0.27) at another: sqrt(0.29 / 4).
    """
    first = [cell("disturb", s, v, downstream=1) for s, v in enumerate((0.6, 0.8))]
    first += [cell("duplicate", s, 0.5, downstream=1) for s in range(2)]
    second = [cell("disturb", s, v, downstream=2) for s, v in enumerate((0.1, 0.1, 0.7, 0.1))]
    second += [cell("duplicate", s, 0.1, downstream=2) for s in range(4)]
    other = [cell("real", s, 0.9, downstream=2) for s in range(9)]
    found = spread([*first, *second, *other, {"record": {"kind": "generate"}}], PAIRS)
    assert found["d"] == (pytest.approx(np.sqrt(0.29 / 4)), 6)
    assert spread([*first, *other], PAIRS) == {}
    level = [cell(arm, s, 0.5) for arm in ("disturb", "duplicate") for s in range(9)]
    assert spread(level, PAIRS) == {}


def test_lines_agree_with_the_formula() -> None:
    """Catches a number that is not that of the study: cells, contrasts, test images."""
    name = "phantom-ultrasound"
    config = study(networks=["alexnet", "resnet18"], seeds=5, arms=["disturb", "duplicate"])
    text = "\n".join(resolution(config, {name: [30, 50]}, []))
    assert re.search(r"\b1 primary\b.*\b10 pairs\b", text)
    assert f"{name} {detectable([Design([30, 50], 10, draws=5)]):.3f}" in text
    assert "draws" in text
    fixed = "\n".join(resolution(config.model_copy(update={"draws": "one"}), {name: [30, 50]}, []))
    assert f"{name} {detectable([Design([30, 50], 10)]):.3f}" in fixed
    assert "draws" not in fixed
    assert re.search(r"in general: needs at least 2\b.*\b1\)$", text, re.MULTILINE)
    assert "15 %" in text
    manifests = [cell(arm, s, 0.5 + 0.1 * (s % 2) * (arm == "disturb"))
                 for arm in ("disturb", "duplicate") for s in range(8)]  # fmt: skip
    for manifest in manifests:
        manifest["record"]["dataset"] = name
    text = "\n".join(resolution(config, {name: [30, 50]}, manifests))
    sd = 0.05 * np.sqrt(8 / 7)
    assert f"{name} {sd:.3f} (8 pairs)" in text
    assert f"{name} {detectable([Design([30, 50], 10, sd, 5)]):.3f}" in text


def test_variants_share_their_test_images() -> None:
    """Catches a study that resolves more by cutting its training set in several ways."""
    whole = {"name": "phantom-xray"}
    cut = {"name": "small", "source": "phantom-xray", "train_size": 20}
    config = study(datasets=[whole, cut], networks=["alexnet"], seeds=6)
    text = "\n".join(resolution(config, {"phantom-xray": [50, 50], "small": [50, 50]}, []))
    one = detectable([Design([50, 50], 12, draws=6)], tests=3)
    assert re.search(rf"on these 2 datasets: {one:.3f}$", text, re.MULTILINE)
    assert re.search(r"in general: needs at least 2\b.*\b1\)$", text, re.MULTILINE)


def test_spread_between_datasets_by_hand() -> None:
    """Catches the spread of dataset means that contains what their cells add, variants that count
    as datasets, and a spread of two datasets that passes for known.

    Differences of each dataset: its mean -0.1 and +0.1, variance 0.02, over two cells 0.01. Means
    0, 0.2 and 0.4 have variance 0.04: sqrt(0.03).
    """
    cells = []
    for place, name in enumerate(("a", "b", "c")):
        for seed, move in enumerate((-0.1, 0.1)):
            for arm, value in (("disturb", 0.3 + 0.2 * place + move), ("duplicate", 0.3)):
                cells.append(cell(arm, seed, value))
                cells[-1]["record"]["dataset"] = name
    assert between(cells, PAIRS) == (pytest.approx(np.sqrt(0.03)), 3)
    assert between(cells[:8], PAIRS) is None
    variants = [DatasetConfig(name="b", source="phantom-xray", train_size=19),
                DatasetConfig(name="c", source="phantom-xray", train_size=18)]  # fmt: skip
    assert between(cells, PAIRS, variants) is None


def test_a_plan_says_what_can_be_seen_in_general() -> None:
    """Catches a plan whose minimum presumes that datasets agree, and one that ignores the spread
    that the storage knows."""
    names = ["phantom-ultrasound", "phantom-xray", "phantom-fundus"]
    config = study(datasets=names, networks=["alexnet", "resnet18"], seeds=5)
    counts = {name: [30, 50] for name in names}
    designs = [Design([30, 50], 10, draws=5)] * 3
    text = "\n".join(resolution(config, counts, []))
    expected = detectable_in_general(designs, BETWEEN, 3)
    assert re.search(rf"in general: {expected:.3f}\b.*{BETWEEN:.3f}, assumed\)$", text, re.M)
    cells = []
    for place, name in enumerate(names):
        for seed in range(4):
            for arm, value in (("disturb", 0.5 + 0.05 * place), ("duplicate", 0.5)):
                cells.append(cell(arm, seed, value + 0.01 * (seed % 2) * (arm == "disturb")))
                cells[-1]["record"]["dataset"] = name
    text = "\n".join(resolution(config, counts, iter(cells)))
    assert re.search(r"in general: .*\b0\.050, measured on 3 datasets\)$", text, re.M)


def test_what_cannot_be_resolved_is_said_in_words() -> None:
    """Catches nan in a plan, and silence about a study that cannot end in an answer."""
    name = "phantom-ultrasound"
    one = study(networks=["alexnet"], seeds=1)
    told = [resolution(one, {name: [30, 30]}, []), resolution(study(), {}, [])]
    told.append(resolution(study(arms=["real"]), {name: [9]}, []))
    assert [len(lines) for lines in told] == [1, 1, 1]
    assert len({lines[0] for lines in told}) == 3


def test_counts_of_test_images_are_those_of_the_split() -> None:
    """Catches a plan for another test split than the one that is opened in the end."""
    phantom = DatasetConfig(
        name="phantom-fundus", size=8, phantom=PhantomConfig(train=20, val=10, test=37, imbalance=3)
    )
    configs = [phantom]
    real = DatasetConfig(name="breastmnist")
    if npz_path(real, None).is_file():
        configs.append(real)
    for config in configs:
        labels = data_source(config).load(SPLITS[2]).labels
        assert data_source(config).counts("test") == np.bincount(labels).tolist()
