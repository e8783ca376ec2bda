"""A report in the making: its records by role, and the files beside the page."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from mgdm_ray.data.groups import ImageGroups
from mgdm_ray.data.published import Published
from mgdm_ray.evaluation.chance import networks_at_chance
from mgdm_ray.evaluation.stats.images import PairedPredictions, image_contrast, unseen
from mgdm_ray.evaluation.stats.intervals import Interval
from mgdm_ray.evaluation.stats.paired import PRIMARY, CellId, Contrast, Pair, contrast_table
from mgdm_ray.pipeline.job import of_draw
from mgdm_ray.results.openings import Opening, added_after_a_look
from mgdm_ray.results.report import artefacts, cells, page
from mgdm_ray.results.report.figures import base
from mgdm_ray.results.report.table import Cell, Table, csv_text
from mgdm_ray.storage.records import Record


@dataclass(frozen=True)
class ReportContext:
    """What the report needs besides the records."""

    study_name: str
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
    groups: Mapping[str, ImageGroups] = field(default_factory=dict)
    """Per dataset which test images belong together."""
    openings: Sequence[Opening] = ()
    """Of the test splits of the study's datasets, by all studies of the storage."""
    storage: str = ""
    mlflow_command: str = ""
    artefact: artefacts.Artefact = lambda record: None  # noqa: ARG005
    without_pictures: frozenset[str] = frozenset()
    """Datasets whose images must not be shown."""
    datasets: Sequence[Mapping[str, Any]] = ()
    """Per dataset name, task, classes, licence, citation, ..."""
    expected_cells: Sequence[CellId] = ()
    """(dataset, network, arm, seed) of every planned cell."""
    plan_counts: Mapping[str, int] = field(default_factory=dict)
    """Planned jobs per kind."""
    published: Sequence[Published] = ()
    """Accuracies of others on the study's datasets."""
    ratio: float | None = None
    """Added images per real one in the cells; None where another setting fixes their number."""
    margin: float | None = None
    """The study's: differences up to it do not matter."""
    draws: str = "one"
    """As in the study: whether each seed has synthetic images of its own."""
    first_draw: int = 0
    """The one that is shown and assessed."""


class Builder:
    """What every section needs: records by role, and ways to write files beside the page."""

    def __init__(self, folder: Path, records: Sequence[Record], context: ReportContext) -> None:
        self.folder = folder
        self.context = context
        self.info = {info["name"]: info for info in context.datasets}
        order = {name: place for place, name in enumerate(self.info)}  # the study's
        self.records = sorted(
            records,
            key=lambda r: (
                r.kind, order.get(r.dataset or "", len(order)), r.dataset or "", r.arm or "", r.key,
            ),
        )  # fmt: skip
        self.written: set[Path] = set()
        self.cells = cells.scores(self.records)
        planned = context.expected_cells or [cells.cell_id(r) for r in self.records if r.is_cell]
        self.expected = list(dict.fromkeys(planned))
        every = [*self.expected, *self.cells]
        self.datasets = list(dict.fromkeys(cell[0] for cell in every))
        self.networks = list(dict.fromkeys(cell[1] for cell in every))
        self.arms = cells.in_order(cell[2] for cell in every)
        self.seeds = sorted({cell[3] for cell in every})
        self.chance = {n: 1 / len(i["classes"]) for n, i in self.info.items() if i.get("classes")}
        """Balanced accuracy of guessing, by dataset."""
        self.trained = {cell[:2] for cell in self.cells}
        self.at_chance = networks_at_chance(self.cells, self.chance, self.arms)
        self.origins = {d: context.origins.get(d, d) for d in self.datasets}
        numbers = {name: found.numbers for name, found in context.groups.items()}
        self.predictions = artefacts.read_predictions(self.records, context.artefact, numbers)
        self.primary = self.contrasts(PRIMARY)
        self.secondary = self.contrasts(cells.SECONDARY)
        self.first_look, self.late = added_after_a_look(context.openings, context.study_name)
        self.trials = artefacts.read_trials(self.records, context.artefact)
        self.judges = artefacts.judges(self.records, context.artefact)
        self.of_first_draw = of_draw(self.records, context.first_draw)
        self.assessed = artefacts.assessments(self.of_first_draw, context.artefact)
        self.problems = cells.problems(self.records, self.expected)

    def contrasts(
        self,
        pairs: Sequence[tuple[str, str]],
        keep: Callable[[CellId], bool] = lambda cell: True,  # noqa: ARG005
    ) -> list[Contrast]:
        """Of those pairs whose arms the study has, over the cells to ``keep``."""
        kept = {cell: value for cell, value in self.cells.items() if keep(cell)}

        def over_images(pair: tuple[str, str]) -> Interval | None:
            """Over cells and test images; None without stored predictions."""
            found = self.paired(pair, kept, self.origins)
            groups = list(found.values()) if found else []
            return image_contrast(groups) or unseen(groups) if groups else None

        return contrast_table(
            kept,
            [pair for pair in pairs if set(pair) <= set(self.arms)],
            list(filter(keep, self.expected)),
            self.origins,
            cells.reasons(self.records),
            over_images,
            self.context.margin,
            self.drawn,
        )

    def paired(
        self, pair: Pair, cells: Collection[CellId], origins: Mapping[str, str] | None = None
    ) -> dict[str, PairedPredictions] | None:
        """Predictions of both arms by dataset, or with ``origins`` with variants together."""
        return artefacts.pair_predictions(self.predictions, pair, cells, origins, self.drawn)

    @property
    def drawn(self) -> tuple[str, ...]:
        """Arms with images of their own for each seed."""
        return cells.DRAWN if self.has_draws else ()

    @property
    def has_draws(self) -> bool:
        """Whether seeds differ in their synthetic images."""
        return self.context.draws != "one" and len(self.seeds) > 1

    def absent(self, contrast: Contrast) -> int:
        """Planned cells of the contrast's arms that are missing."""
        return sum(c not in self.cells for c in self.expected if c[2] in contrast.pair)

    def classes(self, dataset: str) -> list[str]:
        """Names of the classes; empty where they are unknown."""
        return [str(name) for name in self.info.get(dataset, {}).get("classes") or ()]

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

    def picture(self, file: str, data: bytes, **words: str) -> dict[str, str]:
        """Keep an image as ``figures/FILE.png``; a lighter ``source`` for the page, with ``alt``,
        ``name`` (bold) and ``caption``."""
        self.save(f"figures/{file}.png", data)
        return {"source": page.data_uri(page.light(data)), **words}

    def table(
        self,
        name: str,
        header: Sequence[str],
        rows: Sequence[Sequence[str | Cell]],
        caption: str = "",
        words: Collection[int] = (),
        class_: str = "",
    ) -> Markup:
        """The table for the page; also written as ``tables/NAME.csv`` and ``.tex``. Empty, and no
        file, without rows."""
        if not rows:
            return Markup("")
        table = Table(name, header, rows, caption, words, class_)
        self.save(f"tables/{name}.csv", table.csv().encode())
        self.save(f"tables/{name}.tex", table.tex().encode())
        return table.html()

    def table_file(
        self, name: str, rows: Iterable[object], columns: Sequence[str] | None = None
    ) -> None:
        """A CSV that the page does not show: rows by column, or lists under ``columns``."""
        frame = pd.DataFrame(list(rows), columns=columns, dtype=object)
        if len(frame.columns):
            self.save(f"tables/{name}.csv", csv_text(frame).encode())

    def file(self, record: Record, name: str) -> Path | None:
        return artefacts.file_of(record, self.context.artefact, name)

    def json(self, record: Record, name: str) -> Any:
        return artefacts.json_of(record, self.context.artefact, name)

    def clean(self) -> None:
        """Remove figures and tables of an earlier report that this one does not have."""
        for path in [*self.folder.glob("figures/*.*"), *self.folder.glob("tables/*.*")]:
            if path.suffix in (".png", ".csv", ".tex") and path not in self.written:
                path.unlink()
