"""A report while it is written: its records sorted out, and its folder."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from matplotlib.figure import Figure

from mgdm_ray.evaluation.chance import networks_at_chance
from mgdm_ray.evaluation.stats import PRIMARY, ImageContrast, image_contrast
from mgdm_ray.results.report import figures, page, paired_predictions, tables
from mgdm_ray.results.report.assessed import assessments, judges
from mgdm_ray.results.report.page import Html, text
from mgdm_ray.results.report.table import Cell, Sheet
from mgdm_ray.results.report.tables import CellId, Tested
from mgdm_ray.storage.records import Record

Found = TypeVar("Found")


@dataclass(frozen=True)
class ReportContext:
    """What the report needs to know besides the records."""

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
    """Of the code that wrote the report; the records know who computed them."""
    findings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Per dataset what is wrong with its splits, in words."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Per dataset the one whose images it has: variants share theirs. Default: its own name."""
    leaked: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Per dataset the test images that are, nearly or exactly, in another split as well."""
    storage: str = ""
    mlflow_command: str = ""
    artefact: Callable[[Record], Path | None] = lambda record: None  # noqa: ARG005
    """The folder of a record's artefact, None where there is none."""
    without_pictures: frozenset[str] = frozenset()
    """Datasets whose images must not be shown."""
    datasets: Sequence[Any] = ()
    """Per dataset a dataclass or mapping: name, task, classes, licence, citation, ..."""
    expected_cells: Sequence[CellId] = ()
    """(dataset, network, arm, seed) of every planned cell."""
    plan_counts: Mapping[str, int] = field(default_factory=dict)
    """Planned jobs per kind."""
    ratio: float | None = None
    """Added images per real one in the cells; None where that is not what fixes their number."""


class Draft:
    """What every section needs: records by role, and ways to write files beside the page."""

    def __init__(self, folder: Path, records: Sequence[Record], context: ReportContext) -> None:
        self.folder = folder
        self.records = sorted(records, key=lambda r: (r.kind, r.dataset or "", r.arm or "", r.key))
        self.context = context
        self.cells = tables.scores(self.records)
        self.expected = list(
            dict.fromkeys(
                context.expected_cells
                or [tables.cell_id(record) for record in self.records if record.is_cell]
            )
        )
        everything = [*self.expected, *self.cells]
        self.datasets = list(dict.fromkeys(cell[0] for cell in everything))
        self.networks = list(dict.fromkeys(cell[1] for cell in everything))
        self.arms = tables.in_order(cell[2] for cell in everything)
        self.seeds = sorted({cell[3] for cell in everything})
        self.info = {info["name"]: info for info in map(_as_mapping, context.datasets)}
        self.origins = {d: context.origins.get(d, d) for d in self.datasets}
        self.predictions = paired_predictions.read_predictions(self.records, context.artefact)
        self.primary = self.contrasts(PRIMARY)
        self.secondary = self.contrasts(tables.SECONDARY)
        chance = {d: 1 / len(i["classes"]) for d, i in self.info.items() if i.get("classes")}
        self.at_chance = networks_at_chance(self.cells, chance, self.arms)
        """Of the pairs of dataset and network those that guess in every arm."""
        self.trials = tables.trials(self.records, context.artefact)
        self.judges = self._in_order(judges(self.records, context.artefact))
        self.assessed = self._in_order(assessments(self.records, context.artefact))
        self.problems = tables.problems(self.records, self.expected)
        self.written: set[Path] = set()

    def contrasts(self, pairs: Sequence[tuple[str, str]]) -> list[Tested]:
        reasons = tables.reasons(self.records)
        return tables.contrasts(
            self.cells, pairs, self.arms, self.expected, self.origins, reasons, self.over_images
        )

    def contrasts_of_learners(self, pairs: Sequence[tuple[str, str]]) -> list[Tested]:
        """The same without networks that guess in every arm, over cells only."""
        dead = set(self.at_chance)
        cells = {cell: value for cell, value in self.cells.items() if cell[:2] not in dead}
        expected = [cell for cell in self.expected if cell[:2] not in dead]
        reasons = tables.reasons(self.records)
        return tables.contrasts(cells, pairs, self.arms, expected, self.origins, reasons)

    def over_images(self, pair: tuple[str, str]) -> ImageContrast | None:
        """Over cells and test images of all datasets; None where predictions are not at hand."""
        cells = paired_predictions.common_cells(self.cells, pair)
        found = paired_predictions.pair_predictions(self.predictions, pair, cells, self.origins)
        return image_contrast(list(found.values())) if found else None

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

    def plot(self, name: str, figure: Figure, alt: str, caption: str) -> Html:
        data = figures.png(figure)
        self.save(f"figures/{name}.png", data)
        return page.image(data, alt, text(caption), class_="plot")

    def table(
        self,
        name: str,
        header: Sequence[str],
        rows: Sequence[Sequence[str | Cell]],
        caption: str = "",
        words: Collection[int] = (),
        class_: str = "",
    ) -> Html:
        """The table for the page; as ``tables/NAME.csv`` and ``.tex`` it lies beside it."""
        sheet = Sheet(name, header, rows, caption, words, class_)
        self.save(f"tables/{name}.csv", sheet.csv().encode())
        self.save(f"tables/{name}.tex", sheet.tex().encode())
        return sheet.html()

    def table_file(
        self, name: str, header: Sequence[str], rows: Iterable[Sequence[object]]
    ) -> None:
        """Rows for programs only, which the page does not show."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        self.save(f"tables/{name}.csv", buffer.getvalue().encode())

    def json_of(self, record: Record, name: str) -> Any:
        """What a file of the record's artefact holds; None where there is no such file."""
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


def _as_mapping(info: Any) -> dict[str, Any]:
    if is_dataclass(info) and not isinstance(info, type):
        return asdict(info)
    return dict(info)
