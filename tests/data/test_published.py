"""Published accuracies: of known datasets and networks, with their source and their cautions."""

from __future__ import annotations

from typing import Any

import pytest

from mgdm_ray.config import MEDMNIST, NETWORKS, DatasetConfig, DownstreamConfig
from mgdm_ray.data.published import published, table


def found(trained: DownstreamConfig | None = None, **dataset: Any) -> dict[str, list[str]]:
    """Cautions by source's year and network."""
    config = DatasetConfig.model_validate({"name": "breastmnist", **dataset})
    rows = published(config, trained or DownstreamConfig())
    return {f"{row.source[:4]} {row.network}": list(row.cautions) for row in rows}


def test_every_figure_is_a_share_of_a_known_dataset_and_network() -> None:
    """Catches per cent beside shares, and a name that no study has: the row would never show."""
    for entry in table():
        assert entry["source"]
        assert entry["read_from"]
        assert entry["protocol"]
        for dataset, figures in entry["accuracy"].items():
            assert dataset in MEDMNIST
            assert set(figures) <= set(NETWORKS)
            assert all(0.4 < value < 1 for value in figures.values())


def test_a_difference_of_protocol_is_named_where_it_is() -> None:
    """Catches a figure of other images, other sizes or other weights shown without a caution."""
    plain = found()
    assert plain["MedM resnet18"] == []
    assert plain["Doer resnet18"] == ["yours: from scratch"]
    hub = found(DownstreamConfig(pretrained="hub"))
    assert hub["MedM resnet18"] == ["yours: pretrained"]
    assert hub["Doer resnet18"] == []
    assert found(size=64)["MedM resnet18"] == ["yours: 64 px"]
    few = found(name="few", source="breastmnist", train_size=50)
    assert few["MedM resnet18"] == ["yours: at most 50 training images"]


@pytest.mark.parametrize(
    "dataset", [{"name": "phantom-fundus"}, {"name": "own", "path": "ham10000.npz"}]
)
def test_nothing_is_published_of_other_images(dataset: dict[str, Any]) -> None:
    """Catches DermaMNIST's figures beside another split of its images."""
    assert found(**dataset) == {}
