"""A report in the making: its records by role, and the files beside the page."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from mgdm_ray.evaluation.chance import networks_at_chance
from mgdm_ray.evaluation.stats import PRIMARY, ImageContrast, image_contrast
from mgdm_ray.pipeline.trials import Trial
from mgdm_ray.results.report import cells, jobs, page, paired_predictions
from mgdm_ray.results.report.assessed import assessments, judges
from mgdm_ray.results.report.cells import AdjustedContrast, CellId
from mgdm_ray.results.report.figures import base
from mgdm_ray.results.report.table import Cell, Table, csv_text
from mgdm_ray.results.report.thumbnails import light
from mgdm_ray.storage.records import Record

Found = TypeVar("Found")


@dataclass(frozen=True)
class ReportContext:
    """What the report needs besides the records."""

    study_name: str
    question: str
    config_yaml: str
    """The resolved configuration."""
    command: str
    """The command line that made the study."""
    started: str
    """ISO 8601."""
    seconds: float
    """Wall time of the last run."""
    versions: Mapping[str, str] = field(default_factory=dict)
    git_commit: str | None = None
    """Of the code that wrote the report; each record has that of the code that computed it."""
    findings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Problems of each dataset's splits, as sentences without full stop."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """The dataset whose images a variant uses, by its name. Default: its own name."""
    leaked: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Per dataset the test images that are (nearly) in another split as well."""
    storage: str = ""
    mlflow_command: str = ""
    artefact: Callable[[Record], Path | None] = lambda record: None  # noqa: ARG005
    """Folder of a record's artefact, or None."""
    without_pictures: frozenset[str] = frozenset()
    """Datasets whose images must not be shown."""
    datasets: Sequence[Any] = ()
    """Per dataset a dataclass or mapping: name, task, classes, licence, citation, ..."""
    expected_cells: Sequence[CellId] = ()
    """(dataset, network, arm, seed) of every planned cell."""
    plan_counts: Mapping[str, int] = field(default_factory=dict)
    """Planned jobs per kind."""
    ratio: float | None = None
    """Added images per real one in the cells; None where another setting fixes their number."""


class Picture(NamedTuple):
    """An image on the page; the caption begins with ``name`` in bold."""

    source: str
    alt: str
    name: str
    caption: str


class Builder:
    """What every section needs: records by role, and ways to write files beside the page."""

    def __init__(self, folder: Path, records: Sequence[Record], context: ReportContext) -> None:
        self.folder = folder
        self.context = context
        self.info = {info["name"]: info for info in map(_as_mapping, context.datasets)}
        order = {name: place for place, name in enumerate(self.info)}  # the study's
        self.records = sorted(
            records,
            key=lambda r: (
                r.kind, order.get(r.dataset or "", len(order)), r.dataset or "", r.arm or "", r.key,
            ),
        )  # fmt: skip
        self.written: set[Path] = set()
        self.cells = cells.scores(self.records)
        planned = context.expected_cells or map(cells.cell_id, filter(_is_cell, self.records))
        self.expected = list(dict.fromkeys(planned))
        every = [*self.expected, *self.cells]
        self.datasets = list(dict.fromkeys(cell[0] for cell in every))
        self.networks = list(dict.fromkeys(cell[1] for cell in every))
        self.arms = cells.in_order(cell[2] for cell in every)
        self.seeds = sorted({cell[3] for cell in every})
        self.chance = {n: 1 / len(i["classes"]) for n, i in self.info.items() if i.get("classes")}
        """Balanced accuracy of guessing, by dataset."""
        self.origins = {d: context.origins.get(d, d) for d in self.datasets}
        self.predictions = paired_predictions.read_predictions(self.records, context.artefact)
        self.primary = self.contrasts(PRIMARY)
        self.secondary = self.contrasts(cells.SECONDARY)
        self.at_chance = networks_at_chance(self.cells, self.chance, self.arms)
        self.trials: list[Trial] = jobs.trials(self.records, context.artefact)
        self.judges = self._in_order(judges(self.records, context.artefact))
        self.assessed = self._in_order(assessments(self.records, context.artefact))
        self.problems = jobs.problems(self.records, self.expected)

    def contrasts(self, pairs: Sequence[tuple[str, str]]) -> list[AdjustedContrast]:
        why = cells.reasons(self.records)
        return cells.contrasts(
            self.cells, pairs, self.arms, self.expected, self.origins, why, self.over_images
        )

    def contrasts_above_chance(self, pairs: Sequence[tuple[str, str]]) -> list[AdjustedContrast]:
        """The same without networks at chance in every arm, over cells only."""
        kept = {cell: v for cell, v in self.cells.items() if cell[:2] not in self.at_chance}
        expected = [cell for cell in self.expected if cell[:2] not in self.at_chance]
        why = cells.reasons(self.records)
        return cells.contrasts(kept, pairs, self.arms, expected, self.origins, why)

    def over_images(self, pair: tuple[str, str]) -> ImageContrast | None:
        """Over cells and test images of all datasets; None without stored predictions."""
        common = paired_predictions.common_cells(self.cells, pair)
        found = paired_predictions.pair_predictions(self.predictions, pair, common, self.origins)
        return image_contrast(list(found.values())) if found else None

    def classes(self, dataset: str) -> list[str]:
        """Names of the classes; empty where they are unknown."""
        return [str(name) for name in self.info.get(dataset, {}).get("classes") or ()]

    def _in_order(self, found: Mapping[str, Found]) -> dict[str, Found]:
        """By dataset, in the study's order; none of others."""
        return {dataset: found[dataset] for dataset in self.datasets if dataset in found}

    def save(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(content)
        os.replace(temporary, path)
        self.written.add(path)
        return path

    def plot(self, name: str, figure: Figure) -> str:
        """Keep a figure as ``figures/NAME.png``; its data URI."""
        data = base.png(figure)
        self.save(f"figures/{name}.png", data)
        return page.data_uri(data)

    def picture(self, file: str, data: bytes, alt: str, name: str, caption: str) -> Picture:
        """Keep an image as ``figures/FILE.png``, with a lighter one for the page."""
        self.save(f"figures/{file}.png", data)
        return Picture(page.data_uri(light(data)), alt, name, caption)

    def table(
        self,
        name: str,
        header: Sequence[str],
        rows: Sequence[Sequence[str | Cell]],
        caption: str = "",
        words: Collection[int] = (),
        class_: str = "",
    ) -> Markup:
        """The table for the page; also written as ``tables/NAME.csv`` and ``.tex``."""
        table = Table(name, header, rows, caption, words, class_)
        self.save(f"tables/{name}.csv", table.csv().encode())
        self.save(f"tables/{name}.tex", table.tex().encode())
        return table.html()

    def table_file(
        self, name: str, header: Sequence[str], rows: Iterable[Sequence[object]]
    ) -> None:
        """A CSV that the page does not show."""
        frame = pd.DataFrame(list(rows), columns=list(header), dtype=object)
        self.save(f"tables/{name}.csv", csv_text(frame).encode())

    def json_of(self, record: Record, name: str) -> Any:
        """Content of a file of the record's artefact; None where there is no such file."""
        folder = self.context.artefact(record)
        path = folder / name if folder else None
        if path is None or not path.is_file():
            return None
        return json.loads(path.read_text(encoding="utf-8"))

    def clean(self) -> None:
        """Remove figures and tables of an earlier report that this one does not have."""
        for path in [*self.folder.glob("figures/*.*"), *self.folder.glob("tables/*.*")]:
            if path.suffix in (".png", ".csv", ".tex") and path not in self.written:
                path.unlink()


def _is_cell(record: Record) -> bool:
    return record.is_cell


def _as_mapping(info: Any) -> dict[str, Any]:
    if is_dataclass(info) and not isinstance(info, type):
        return asdict(info)
    return dict(info)
