"""The report's statistics from stored predictions: intervals over images, leaks, ranks."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file
from scipy import stats as scipy_stats
from sklearn.metrics import balanced_accuracy_score
from statsmodels.stats.weightstats import DescrStatsW

from mgdm_ray.data.groups import ImageGroups
from mgdm_ray.evaluation.stats.images import PairedPredictions, image_contrast
from mgdm_ray.evaluation.stats.intervals import holm, over_cells
from mgdm_ray.results import HEADLINE_FILE
from mgdm_ray.results.report import write_report
from mgdm_ray.results.report.artefacts import PREDICTIONS, pair_predictions, read_predictions
from mgdm_ray.results.report.builder import Builder, ReportContext
from mgdm_ray.results.report.cells import cell_id
from mgdm_ray.storage.records import Record
from tests.results.report.page import read_page, rows_of

COUNTS = (40, 25)
NETWORKS = ("alexnet", "resnet18", "densenet121")
ARMS = ("real", "duplicate", "disturb")
SEEDS = range(4)


class Study:
    """Cells with predictions; ``right[arm]`` is the share of images that an arm has right."""

    def __init__(
        self, root: Path, datasets: Sequence[str], right: dict[str, float], common: bool = False
    ) -> None:
        self.root = root
        self.records: list[Record] = []
        rng = np.random.default_rng(1)
        self.labels = np.repeat([0, 1], COUNTS)
        self.datasets = list(datasets)
        for dataset in datasets:
            shared = rng.random((len(ARMS), len(self.labels)))
            for network in NETWORKS if right else ():
                for seed in SEEDS:
                    for place, arm in enumerate(ARMS):
                        draw = shared[place] if common else rng.random(len(self.labels))
                        self.add(dataset, network, arm, seed, draw < right[arm])

    def add(self, dataset: str, network: str, arm: str, seed: int, right: np.ndarray) -> None:
        predicted = np.where(right, self.labels, 1 - self.labels)
        value = float(balanced_accuracy_score(self.labels, predicted))
        record = Record(
            key=f"{dataset}-{network}-{arm}-{seed}", kind="fit_downstream", status="done",
            dataset=dataset, network=network, arm=arm, seed=seed, split="test",
            metrics={"balanced_accuracy": value},
        )  # fmt: skip
        folder = self.root / record.key
        folder.mkdir(parents=True)
        tensors = {"probabilities": np.eye(2)[predicted] * 0.6 + 0.2, "labels": self.labels}
        save_file(tensors, folder / PREDICTIONS)
        self.records.append(record)

    def context(self, **changes: object) -> ReportContext:
        cells = [(d, n, a, s) for d in self.datasets for n in NETWORKS for a in ARMS for s in SEEDS]
        values: dict[str, object] = {
            "study_name": "s", "config_yaml": "", "command": "", "started": "",
            "seconds": 1.0, "artefact": lambda record: self.root / record.key,
            "expected_cells": cells,
        }  # fmt: skip
        return ReportContext(**{**values, **changes})  # type: ignore[arg-type]


EFFECT = {"real": 0.6, "duplicate": 0.6, "disturb": 0.72}


def test_numbers_agree_with_the_metrics_of_the_cells(tmp_path: Path) -> None:
    """Catches predictions paired with the wrong cell, arm or dataset, and an interval missing on
    the page."""
    study = Study(tmp_path / "a", ["p", "q"], EFFECT)
    path = write_report(tmp_path, study.records, study.context())
    rows = rows_of(path, "contrasts_by_dataset")
    values = {(r.dataset, r.network, r.arm, r.seed): r.metrics["balanced_accuracy"]
              for r in study.records}  # fmt: skip
    for dataset in ("p", "q"):
        expected = np.mean([
            values[dataset, n, "disturb", s] - values[dataset, n, "duplicate", s]
            for n in NETWORKS for s in SEEDS
        ])  # fmt: skip
        (row,) = [r for r in rows if r["dataset"] == dataset]
        assert float(row["difference"]) == pytest.approx(expected)
        assert float(row["95 % interval low"]) < expected < float(row["95 % interval high"])
        counts = [row[name] for name in ("pairs of cells", "test images", "patients")]
        assert [*counts, row["patients of the rarest class"]] == ["12", "65", "65", "25"]
    (primary, *_) = rows_of(path, "contrasts")
    (all_row,) = [r for r in rows if r["dataset"].startswith("all")]
    assert float(all_row["difference"]) == pytest.approx(float(primary["difference"]))
    assert primary["these datasets, 95 % interval low"] == all_row["95 % interval low"]
    assert float(primary["these datasets, p (Holm)"]) == float(all_row["p (Holm)"])
    page, _ = read_page(path)
    assert "statistics" in page.ids
    assert page.badges[0] == primary["verdict"] == "better here"


def test_patients_are_the_unit(tmp_path: Path) -> None:
    """Catches a report that ignores which test images belong together: those of the data at hand,
    else those stored with the predictions, else each image alone; and says which."""
    study = Study(tmp_path / "a", ["p"], EFFECT, common=True)
    five = np.arange(65) // 5
    groups = {"p": ImageGroups(five, 13, 0)}
    patients, images, unknown = ({}, {}, {})
    for name, kept, context in (
        ("now", patients, study.context(groups=groups)),
        ("none", images, study.context()),
        ("other", unknown, study.context(groups={"p": ImageGroups(np.arange(65), None, 2)})),
    ):
        path = write_report(tmp_path / name, study.records, context)
        (row, _) = rows_of(path, "contrasts_by_dataset")[:2]
        kept |= row | {"page": path.read_text()}
    assert (patients["patients"], patients["patients of the rarest class"]) == ("13", "5")
    assert (images["patients"], unknown["patients"]) == ("65", "65")
    assert patients["95 % interval low"] != images["95 % interval low"]
    assert unknown["95 % interval low"] == images["95 % interval low"]
    assert "p: 65 images, patients 13, 13 groups" in patients["page"]
    assert "no groups stored" in images["page"]
    assert "Patients unknown" in unknown["page"]
    assert "Patients unknown" not in patients["page"]
    for record in study.records:
        file = study.root / record.key / PREDICTIONS
        save_file({**load_file(file), "groups": five}, file)
    stored = write_report(tmp_path / "stored", study.records, study.context())
    row = rows_of(stored, "contrasts_by_dataset")[0]
    assert row["95 % interval low"] == patients["95 % interval low"]


def test_one_patient_per_class_has_no_interval(tmp_path: Path) -> None:
    """Catches an interval over cells alone, with a verdict, where no second patient was tested."""
    study = Study(tmp_path / "a", ["p"], EFFECT)
    groups = {"p": ImageGroups(study.labels, 2, 0)}
    path = write_report(tmp_path, study.records, study.context(groups=groups))
    (primary, *_) = rows_of(path, "contrasts")
    assert primary["verdict"] == "not resolvable"
    assert primary["these datasets, 95 % interval low"] == ""
    page = path.read_text()
    assert "no variance over patients" in page
    assert "no stored predictions" not in page


def test_a_contrast_is_recomputed_from_the_files_beside_the_report(tmp_path: Path) -> None:
    """Catches per-image results that do not suffice: difference, interval and its patients from
    tables/predictions-NAME.csv alone."""
    study = Study(tmp_path / "a", ["p", "q"], EFFECT)
    five = np.arange(65) // 5
    groups = {name: ImageGroups(five, 13, 0) for name in ("p", "q")}
    path = write_report(tmp_path, study.records, study.context(groups=groups))
    found = []
    for name in ("p", "q"):
        table = pd.read_csv(path.parent / "tables" / f"predictions-{name}.csv")
        assert set(table.columns[:2]) == {"class", "group"}
        assert table.shape == (65, 2 + len(NETWORKS) * len(ARMS) * len(SEEDS))
        cells = [f"{n} ARM {s}" for n in sorted(NETWORKS) for s in SEEDS]
        a, b = (
            table[[cell.replace("ARM", arm) for cell in cells]].to_numpy(float).T
            for arm in ("disturb", "duplicate")
        )
        found.append(PairedPredictions(a - b, table["class"].to_numpy(), table["group"].to_numpy()))
    again = image_contrast(found)
    assert again is not None
    numbers = json.loads((path.parent / HEADLINE_FILE).read_text())
    shown = [numbers[f"contrast/disturb-duplicate/{n}"] for n in ("difference", "here/low")]
    assert shown == pytest.approx([again.difference, again.low])


def paired_of(report: Builder) -> dict[str, PairedPredictions]:
    found = pair_predictions(report.predictions, ("disturb", "duplicate"), report.cells)
    assert found is not None
    return found


def test_both_intervals_recomputed(tmp_path: Path) -> None:
    """Catches a report whose intervals are not those of the records: here by the two-way variance
    written out loop by loop, in general by scipy's t test over the datasets' means."""
    study = Study(tmp_path / "a", ["p", "q", "r"], EFFECT)
    path = write_report(tmp_path, study.records, study.context(margin=0.3))
    (row, *_) = rows_of(path, "contrasts")
    groups = paired_of(Builder(tmp_path, study.records, study.context()))
    means, variances = [], []
    for group in groups.values():
        d, labels = group.difference, group.labels
        by_class = np.array([d[:, labels == k].mean(axis=1) for k in (0, 1)])
        between_cells = by_class.mean(axis=0).var(ddof=1) / len(d)
        images = rest = 0.0
        for k in (0, 1):
            one = d[:, labels == k]
            share = 1 / (4 * one.shape[1])
            images += share * one.mean(axis=0).var(ddof=1)
            left = one - one.mean(axis=0) - one.mean(axis=1, keepdims=True) + one.mean()
            rest += share * (left**2).sum() / ((len(d) - 1) * (one.shape[1] - 1)) / len(d)
        variances.append(max(0, between_cells - rest) + max(0, images - rest) + rest)
        means.append(by_class.mean())
    ends = [float(row[f"these datasets, 95 % interval {end}"]) for end in ("low", "high")]
    found = image_contrast(list(groups.values()))
    assert found is not None
    assert found.se == pytest.approx(np.sqrt(sum(variances)) / 3)
    half = scipy_stats.t.ppf(0.975, found.df) * found.se
    assert ends == pytest.approx([np.mean(means) - half, np.mean(means) + half])
    oracle = scipy_stats.ttest_1samp(means, 0)
    ends = [float(row[f"in general, 95 % interval {end}"]) for end in ("low", "high")]
    assert ends == pytest.approx(oracle.confidence_interval())
    assert float(row["in general, p (Holm)"]) == pytest.approx(oracle.pvalue)
    p, _, _ = DescrStatsW(means).ttost_mean(*(s * float(row["excluded: larger than in general"])
                                              for s in (-1, 1)))  # fmt: skip
    assert p == pytest.approx(0.04)
    numbers = json.loads((path.parent / HEADLINE_FILE).read_text())
    assert numbers["contrast/disturb-duplicate/general/low"] == pytest.approx(ends[0])
    assert numbers["margin"] == 0.3
    assert not [name for name in numbers if name.endswith(("duplicate/low", "duplicate/p_holm"))]
    by_dataset = [r for r in rows_of(path, "contrasts_by_dataset") if r["dataset"] in "pqr"]
    raw = [image_contrast([group]) for group in groups.values()]
    assert [float(r["p (Holm)"]) for r in by_dataset] == pytest.approx(
        holm([one.p for one in raw if one])
    )


def test_no_difference_is_an_answer(tmp_path: Path) -> None:
    """Catches a study that can only ever find a difference or nothing, and one that concludes
    without the margin having been fixed."""
    level = {"real": 0.6, "duplicate": 0.6, "disturb": 0.6}
    study = Study(tmp_path / "a", ["p", "q", "r", "s"], level)
    for margin, verdict in ((None, "not resolvable"), (0.4, "no difference larger than 0.4")):
        path = write_report(tmp_path, study.records, study.context(margin=margin))
        (row,) = rows_of(path, "contrasts")
        assert row["verdict"].startswith(verdict)
        page, _ = read_page(path)
        assert page.badges[0] == row["verdict"]
        assert "exclude a difference larger than" in page.sections["head"]


def test_the_luck_of_a_test_split_is_no_finding(tmp_path: Path) -> None:
    """Catches 24 cells that all repeat the same few test images and pass for 24 findings: every
    cell of a dataset gives the same paired, and the arms differ by chance alone."""
    level = {"real": 0.6, "duplicate": 0.6, "disturb": 0.6}
    study = Study(tmp_path / "a", ["p", "q"], level, common=True)
    report = Builder(tmp_path, study.records, study.context())
    (tested,) = report.primary
    cells = over_cells([groups.cells() for groups in paired_of(report).values()])
    assert cells is not None
    assert not cells.is_known  # over cells alone it has no spread at all
    assert tested.here is not None
    assert tested.here.p > 0.05
    assert tested.verdict == "not resolvable"


def test_without_leaked_images(tmp_path: Path) -> None:
    """Catches a sensitivity line that leaves out other images than those that leak: the arm
    disturb is right on the leaked ones and no better elsewhere."""
    study = Study(tmp_path / "a", ["p"], {"real": 0.6, "duplicate": 0.6, "disturb": 0.6})
    leaked = list(range(10)) + list(range(40, 46))
    study.records = []
    rng = np.random.default_rng(5)
    study.root = tmp_path / "b"
    for network in NETWORKS:
        for seed in SEEDS:
            for arm in ARMS:
                right = rng.random(65) < 0.6
                right[leaked] = arm == "disturb"
                study.add("p", network, arm, seed, right)
    path = write_report(tmp_path, study.records, study.context(leaked={"p": leaked}))
    page, _ = read_page(path)
    assert "16 of p" in page.sections["statistics"]
    assert re.search(r"\b16 test images of p\b", page.sections["head"])
    (row,) = rows_of(path, "without_leaked")
    paired = pair_predictions(
        read_predictions(study.records, lambda record: study.root / record.key),
        ("disturb", "duplicate"),
        {cell_id(record) for record in study.records},
    )
    assert paired is not None
    whole, left = paired["p"].mean(), paired["p"].without(leaked).mean()
    assert whole > 0.2 > abs(left)
    assert float(row["all test images"]) == pytest.approx(whole)
    assert float(row["without leaked"]) == pytest.approx(left)
    found = image_contrast([paired["p"].without(leaked)])
    assert found is not None
    bounds = [float(row[f"95 % interval without {end}"]) for end in ("low", "high")]
    assert bounds == pytest.approx([found.low, found.high])


def test_ranks_need_six_datasets_that_share_no_images(tmp_path: Path) -> None:
    """Catches ranks of four datasets, of variants that pass for datasets, and none where the
    premises hold."""
    names = [f"d{i}" for i in range(6)]
    study = Study(tmp_path / "a", names, {"real": 0.45, "duplicate": 0.65, "disturb": 0.85})
    path = write_report(tmp_path, study.records, study.context())
    figures = path.parent / "figures"
    assert (figures / "ranks-arms.png").is_file()
    assert not (figures / "ranks-networks.png").exists()  # no network is better than another
    assert "6 datasets" in read_page(path)[0].sections["statistics"]
    write_report(tmp_path, study.records, study.context(origins={"d1": "d0", "d3": "d2"}))
    assert not (figures / "ranks-arms.png").exists()
    write_report(tmp_path, study.records[1:], study.context())  # an incomplete block
    assert not (figures / "ranks-arms.png").exists()


def test_cells_on_other_images_are_not_compared_image_by_image(tmp_path: Path) -> None:
    """Catches an interval from paired to different questions, and a crash for a lost file."""
    study = Study(tmp_path / "a", ["p"], EFFECT)
    cells = {cell_id(record) for record in study.records}
    pair = ("disturb", "duplicate")
    answered = read_predictions(study.records, lambda record: study.root / record.key)
    assert pair_predictions(answered, pair, cells) is not None
    one = answered["p", "alexnet", "disturb", 0]
    other = {**answered, ("p", "alexnet", "disturb", 0): type(one)(one.right, one.labels[::-1])}
    assert pair_predictions(other, pair, cells) is None
    (study.root / "p-alexnet-disturb-0" / PREDICTIONS).write_bytes(b"torn")
    damaged = read_predictions(study.records, lambda record: study.root / record.key)
    assert len(damaged) == len(answered) - 1
    assert pair_predictions(damaged, pair, cells) is None


def test_networks_at_chance_in_every_arm_are_named(tmp_path: Path) -> None:
    """Catches a mean difference that is small only because most networks learnt nothing, and
    nobody says so. What they add is zero, so that without them the difference is larger by the
    share of the pairs that they are: 16 / 12."""
    study = Study(tmp_path / "artefacts", ["d"], EFFECT)
    for arm in ARMS:
        for seed in SEEDS:
            study.add("d", "squeezenet1_1", arm, seed, study.labels == 0)
    cells = [(r.dataset, r.network, r.arm, r.seed) for r in study.records]
    info = {"name": "d", "task": "binary", "classes": ["a", "b"]}
    path = write_report(
        tmp_path / "s", study.records, study.context(expected_cells=cells, datasets=[info])
    )
    (row,) = rows_of(path, "without_guessing")
    assert (row["pairs of cells"], row["pairs without"]) == ("16", "12")
    assert float(row["without those at chance"]) == pytest.approx(
        float(row["all networks"]) * 16 / 12
    )
    page, _ = read_page(path)
    assert "squeezenet1_1 (d)" in page.sections["statistics"]
    assert "1 of 4" in page.sections["head"]


def test_a_study_in_which_all_guess_has_a_report(tmp_path: Path) -> None:
    """Catches a report that breaks where no pair of cells is left."""
    study = Study(tmp_path / "artefacts", ["d"], {})
    for arm in ARMS:
        for seed in SEEDS:
            study.add("d", "squeezenet1_1", arm, seed, study.labels == 0)
    info = {"name": "d", "task": "binary", "classes": ["a", "b"]}
    path = write_report(
        tmp_path / "s", study.records, study.context(expected_cells=(), datasets=[info])
    )
    (row,) = rows_of(path, "without_guessing")
    assert row["pairs without"] == "0"
