"""A study file together with its storage: data, plan, and which jobs are finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mgdm_ray.classifiers import weights
from mgdm_ray.config import InputError
from mgdm_ray.config.file import read_study
from mgdm_ray.config.resolved import RESOLVED_FILE, drawn_once
from mgdm_ray.data.load import data_source
from mgdm_ray.environment import StudyStopped, gpus
from mgdm_ray.pipeline.gpu_memory import GPUS, needs, rented_gpus
from mgdm_ray.pipeline.plan import make_plan
from mgdm_ray.pipeline.staging import bring_notes, inputs_for_all, open_storage
from mgdm_ray.pipeline.status import StudyStatus
from mgdm_ray.pipeline.warm_start import warm_points
from mgdm_ray.results.finalize import RECORDS_FILE
from mgdm_ray.storage.records import Record
from mgdm_ray.storage.remote.leases import open_locks
from mgdm_ray.storage.remote.objects import ObjectsError
from mgdm_ray.storage.store import no_space

if TYPE_CHECKING:
    from mgdm_ray.pipeline.tasks.base import Context

DETERMINISTIC_BATCH = 64
"""Images per forward while sampling in deterministic mode, where the study gives none."""
RESUMES = "finished jobs are kept; the same command resumes"


class OpenedStudy:
    """One study file, resolved, with its plan and its storage."""

    def __init__(
        self,
        path: str | Path,
        overrides: Sequence[str] = (),
        storage: str | None = None,
        *,
        write: bool = True,
    ) -> None:
        self.path = path
        self.config, self.source = read_study(path, overrides)
        self.store = open_storage(storage or self.config.storage, write=write)
        self.locks = open_locks(self.store.location)
        self.folder = self.store.root / "studies" / self.config.name
        bring_notes(self.store, self.config)
        self.read = self.config
        """The study with the files that jobs read; ``prepare_data`` replaces own images."""
        self._identify()

    def _identify(self) -> None:
        """Fingerprints of the data, and the keys of all jobs, which depend on them."""
        config = self.config
        self.fingerprints = {
            d.name: data_source(d, config.data_dir).fingerprint() for d in config.datasets
        }
        self.contents = {**self.fingerprints, **weights.weights_fingerprints(config)}
        self.plan = make_plan(config, self.contents, warm_points(config, self.store.root))
        self.status = StudyStatus(self.plan, self.store, self.folder / RECORDS_FILE)

    @property
    def absent(self) -> list[str]:
        """Datasets whose files are not on this machine."""
        return [name for name, value in self.fingerprints.items() if value == "absent"]

    def prepare_data(self) -> None:
        """Convert own images to the files that jobs read, in the storage."""
        from mgdm_ray.data.sources.prepare import prepare

        ready = []
        for index, dataset in enumerate(self.config.datasets):
            with self._placed(index):
                ready.append(prepare(dataset, self.config.data_dir, self.store.root / "data"))
        self.read = self.config.model_copy(update={"datasets": tuple(ready)})

    def check_own_files(self) -> None:
        """Refuse a missing file that no download can provide."""
        for index, dataset in enumerate(self.config.datasets):
            if dataset.path is not None and dataset.name in self.absent:
                with self._placed(index):
                    data_source(dataset, self.config.data_dir).check()

    def check_gpu_memory(self) -> None:
        """Refuse a job that no GPU to be rented holds, or, with a GPU here, no known one."""
        found = needs(self.plan.jobs, self.config.resources, GPUS if gpus() else rented_gpus())
        if refused := [need.refusal for need in found if need.refusal]:
            source = self.source
            places = [f"{source.path}:{source.line(tuple(key.split('.')))}" for key, _ in refused]
            told = zip(places, refused, strict=True)
            raise InputError("\n".join(f"{place}: {key}: {text}" for place, (key, text) in told))

    def lost_by_draws(self) -> str:
        """Why the default of ``draws`` would compute cells of this study again; else empty.

        Its results here may be of one draw: made before the key existed, or with ``draws: one``.
        """
        resolved = self.folder / RESOLVED_FILE
        if "draws" in self.source.data or not resolved.is_file():
            return ""
        if not drawn_once(resolved.read_text(encoding="utf-8")):
            return ""
        config = self.config.model_copy(update={"draws": "one"})
        before = make_plan(config, self.contents, warm_points(config, self.store.root)).cells()
        done = [job for job in before if self.store.is_done(job.kind, job.key)]
        lost = sum(job.key not in self.plan.jobs for job in done)
        if not lost:
            return ""
        return (
            f"{self.path}:{self.source.line(('draws',))}: draws: {self.store.location} holds "
            f"{len(done)} finished cells of study {self.config.name} with one draw of synthetic "
            f"images for all seeds; the default 'images' would train {lost} of them again with "
            "draws of their own. Give draws: one to go on with what is there (no interval covers "
            "another draw), or draws: images to compute the others"
        )

    def check_draws(self) -> None:
        """Refuse to compute anew, by a default, what the storage has of a single draw."""
        if lost := self.lost_by_draws():
            raise InputError(lost)

    def check_data(self) -> None:
        """Download absent datasets; refuse missing or damaged data before anything starts."""
        absent = self.absent
        self.prepare_data()
        for index, dataset in enumerate(self.read.datasets):
            source = data_source(dataset, self.config.data_dir)
            if dataset.name in absent and dataset.path is None:
                print(f"downloading {dataset.name} ({dataset.size} px)", flush=True)
                source.download()
            with self._placed(index):
                warnings = source.check()
                if set(self.config.arms) - {"real", "augment"}:
                    source.check_top_up(self.config.synthetic)
            for warning in warnings:
                print(f"warning: {dataset.name}: {warning}", flush=True)
        if absent:
            self._identify()

    @contextmanager
    def _placed(self, index: int) -> Iterator[None]:
        """Put the place of a dataset before what is wrong with it."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.path}: datasets[{index}]: {error}") from None

    def known(self, *, retry_failed: bool) -> dict[str, Record]:
        """Records of the jobs that need no further run."""
        known = self.status.finished()
        if not retry_failed:
            known = {**self.status.lasting_failures(), **known}
        return self.status.with_limits(known, self.config.limits)

    def leads(self) -> bool:
        """Whether this driver writes the study's records, MLflow and report.

        Of several drivers of one study the first does; the others only compute.
        """
        return self.locks.take("study", self.config.name)

    def leader(self) -> str:
        return self.locks.holder("study", self.config.name)

    def context(self) -> Context:
        """What every job of the study is given."""
        from mgdm_ray.pipeline.tasks.base import Context

        config, deterministic = self.config, self.config.deterministic
        batch = config.sampling.batch_size
        if deterministic and batch == "auto":
            batch = DETERMINISTIC_BATCH  # what fits depends on what else runs
        inputs = inputs_for_all(self.read, self.store.location, self.contents)
        return Context(
            storage=self.store.location,
            study_folder=str(self.folder),
            datasets=inputs.datasets,
            data_dir=inputs.data_dir,
            weights_folder=inputs.weights_folder,
            sampling_batch=batch,
            sampling_workers=config.resources.sampling_workers,
            compile="never" if deterministic else config.resources.compile,
            deterministic=deterministic,
            checkpoint_every={
                what: getattr(config, what).checkpoint_every for what in ("denoiser", "guide")
            },
        )

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Turn faults of the storage into InputError or StudyStopped; release locks at the end."""
        try:
            yield
        except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
            path = Path(str(error.filename))
            if path in (self.store.root, self.locks.folder):
                advice = "choose a writable folder with --storage"
                raise InputError(f"storage {self.store.root}: {error.strerror}; {advice}") from None
            if not path.is_relative_to(self.store.root):
                raise
            advice = "unexpected file in the storage folder; move or delete it"
            raise InputError(f"storage: {path}: {error.strerror}; {advice}") from None
        except ObjectsError as error:
            raise StudyStopped(f"{error}\n{RESUMES}") from error
        except (OSError, StudyStopped) as error:
            if isinstance(error, OSError) and not no_space(error):
                raise
            text = f"{error}\nfree some space at {self.store.root}; {RESUMES}"
            raise StudyStopped(text) from error
        finally:
            self.locks.release_all()
