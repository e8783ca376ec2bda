"""The command line: ``python -m mgdm_ray.study STUDY.yaml`` loads, plans, runs and reports."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from mgdm_ray.classifiers import weights
from mgdm_ray.cli import plan_view
from mgdm_ray.cli.plan_view import PlanEstimate
from mgdm_ray.config import InputError
from mgdm_ray.config.file import read_study
from mgdm_ray.config.resolved import changes, resolved_text
from mgdm_ray.diffusion.plugins import import_plugins
from mgdm_ray.environment import StartError, StudyStopped, cores, gpus
from mgdm_ray.pipeline.cost_model import manifests_in, read_probes
from mgdm_ray.pipeline.plan import Job, Plan, make_plan
from mgdm_ray.pipeline.staging import bring_notes, inputs_for_all, open_storage, share_notes
from mgdm_ray.pipeline.status import StudyStatus
from mgdm_ray.pipeline.warm_start import warm_points
from mgdm_ray.results.finalize import RECORDS_FILE, REPORT_FILE, Finalizer
from mgdm_ray.storage.records import Record, append_record
from mgdm_ray.storage.remote.leases import open_locks
from mgdm_ray.storage.remote.objects import ObjectsError
from mgdm_ray.storage.store import no_space

if TYPE_CHECKING:
    from mgdm_ray.pipeline.tasks.base import Context

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
SHARE_EVERY_S = 30.0
"""Between two copies of the records to where the store is."""
DETERMINISTIC_BATCH = 64
"""Images per forward while sampling in deterministic mode, where none is given."""
CHANGES_SHOWN = 3


def parser() -> argparse.ArgumentParser:
    new = argparse.ArgumentParser(
        prog="python -m mgdm_ray.study",
        description="Run a study; the same command again resumes it. "
        "'doctor [STUDY.yaml]' in place of it says whether one can run here.",
        epilog="Exit codes: 0 all done, 1 some job failed, 2 the input is wrong, 130 interrupted.",
    )
    new.add_argument(
        "study",
        metavar="STUDY.yaml",
        help="a study file, or the name of a shipped study: quickstart",
    )
    new.add_argument(
        "--plan", action="store_true", help="show the jobs, what is left, what it costs; no start"
    )
    new.add_argument(
        "--probe",
        action="store_true",
        help="with --plan: measure what no finished job tells (minutes)",
    )
    new.add_argument(
        "--set",
        metavar="A.B=C",
        action="append",
        default=[],
        dest="overrides",
        help="override one value of the study (repeatable)",
    )
    new.add_argument("--storage", metavar="DIR|URL", help="where everything goes (default: ./runs)")
    new.add_argument("--address", metavar="ADDR", help="an existing Ray cluster (default: local)")
    new.add_argument("--fail-fast", action="store_true", help="stop at the first failed job")
    new.add_argument("--retry-failed", action="store_true", help="run again what failed before")
    new.add_argument(
        "--report-only", action="store_true", help="rebuild records, report and MLflow; run nothing"
    )
    new.set_defaults(words=())
    return new


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["doctor"]:
        from mgdm_ray import doctor

        return doctor.main(words[1:])
    arguments = parser().parse_args(words)
    arguments.words = words
    _interrupted.clear()
    _catch_signals()
    try:
        import_plugins()
        return Study(arguments).start()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except (StartError, StudyStopped) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except (KeyboardInterrupt, SystemExit) as stop:
        # While Ray starts, its own handler makes an exit of a SIGTERM.
        if isinstance(stop, SystemExit) and stop.code != signal.SIGTERM:
            raise
        print("\nStopped. What is finished is kept; the same command resumes:", file=sys.stderr)
        print(f"  {_command_line(words)}", file=sys.stderr)
        return INTERRUPTED


_interrupted = threading.Event()


def _catch_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    # Remembered as well as raised: a library that is being imported or called just then may
    # swallow the exception.
    _interrupted.set()
    raise KeyboardInterrupt


def _stop_if_interrupted() -> None:
    if _interrupted.is_set():
        raise KeyboardInterrupt


def _command_line(words: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "mgdm_ray.study", *words])


class Study:
    """One invocation: the resolved study, its plan, and what the storage already holds."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from mgdm_ray.data.load import fingerprint

        if arguments.probe and not arguments.plan:
            raise InputError("--probe measures for a plan: give it together with --plan")
        self.arguments = arguments
        self.started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.config, self.source = read_study(arguments.study, arguments.overrides)
        self.store = open_storage(
            arguments.storage or self.config.storage, write=not arguments.plan
        )
        self.locks = open_locks(self.store.location)
        self.folder = self.store.root / "studies" / self.config.name
        bring_notes(self.store, self.config)
        self.fingerprints = {
            d.name: fingerprint(d, self.config.data_dir) for d in self.config.datasets
        }
        self.read = self.config
        """The study with the files that jobs read; own images are prepared before a run."""
        self.contents = {**self.fingerprints, **weights.weights_fingerprints(self.config)}
        self.plan: Plan = make_plan(
            self.config, self.contents, warm_points(self.config, self.store.root)
        )
        self.study_status = StudyStatus(self.plan, self.store, self.folder / RECORDS_FILE)

    def start(self) -> int:
        try:
            if self.arguments.plan:
                self.show_plan()
                return DONE
            return self.report_only() if self.arguments.report_only else self.run()
        except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
            path = Path(str(error.filename))
            if path in (self.store.root, self.locks.folder):
                raise InputError(
                    f"storage {self.store.root}: {error.strerror}; give a folder that can be "
                    "written"
                ) from None
            if not path.is_relative_to(self.store.root):
                raise
            raise InputError(
                f"storage: {path}: {error.strerror}; it is none of what a study leaves there: "
                "move it away"
            ) from None
        except ObjectsError as error:
            raise StudyStopped(
                f"{error}\nwhat is finished is kept, and the same command goes on"
            ) from error
        except (OSError, StudyStopped) as error:
            if isinstance(error, OSError) and not no_space(error):
                raise
            raise StudyStopped(
                f"{error}\nmake room at {self.store.root}; what is finished is kept, and the same "
                "command goes on"
            ) from error
        finally:
            self.locks.release_all()

    def report_only(self) -> int:
        absent = [name for name, value in self.fingerprints.items() if value == "absent"]
        if absent:
            raise InputError(
                f"--report-only: the data of {', '.join(absent)} is not here, and without it "
                "finished jobs cannot be told; give data_dir or MGDM_DATA_DIR"
            )
        known = {**self.study_status.failures(), **self.study_status.finished()}
        if not known:
            raise InputError(f"--report-only: {self.store.location} holds nothing of this study")
        known = self.study_status.gated(known, self.config.limits)
        if not self.leads():
            raise StartError(f"{self.folder} is in use by {self.leader()}: wait for it")
        self.prepare_own()
        from mgdm_ray.cli.summary import summary

        finalizer = self.finalizer()
        finalizer.close(known, 0.0, anew=True)
        share_notes(self.store, self.folder)
        # Jobs that have not run yet are no failure here.
        failed = any(record.status == "failed" for record in known.values())
        summary(finalizer, known)
        return FAILED if failed else DONE

    def plan_estimate(self) -> PlanEstimate:
        """The plan, what the storage holds, and this machine."""
        from mgdm_ray.data.load import data_source

        sources = {d.name: data_source(d, self.config.data_dir) for d in self.config.datasets}
        tests = {name: source.counts("test") for name, source in sources.items()}
        counts = {name: source.train_images() for name, source in sources.items()}
        manifests = manifests_in(self.store)
        return PlanEstimate(
            self.config,
            self.plan,
            self.store,
            manifests,
            {k: r for k, r in self.study_status.lasting_failures().items() if k not in manifests},
            read_probes(self.store.root),
            {name: count for name, count in counts.items() if count is not None},
            {"CPU": float(cores()), "GPU": float(gpus())},
            retry_failed=self.arguments.retry_failed,
            test_counts={name: found for name, found in tests.items() if found is not None},
        )

    def show_plan(self) -> None:
        weights.require_timm(self.config)
        plan_estimate = self.plan_estimate()
        if self.arguments.probe:
            self.prepare_own()
            if plan_view.measure(plan_estimate, self.context()):
                plan_estimate = self.plan_estimate()
        plan_view.show(plan_estimate)

    def check_data(self) -> None:
        """Fetch what can be fetched, refuse what is missing or damaged, before anything starts."""
        from mgdm_ray.data.load import data_source

        self.prepare_own()
        for index, dataset in enumerate(self.read.datasets):
            source = data_source(dataset, self.config.data_dir)
            if self.fingerprints[dataset.name] == "absent" and dataset.path is None:
                print(f"downloading {dataset.name} ({dataset.size} px)", flush=True)
                source.download()
            try:
                warnings = source.check()
                if set(self.config.arms) - {"real", "augment"}:
                    source.check_top_up(self.config.synthetic)
            except InputError as error:
                raise InputError(f"{self.arguments.study}: datasets[{index}]: {error}") from None
            for warning in warnings:
                print(f"warning: {dataset.name}: {warning}", flush=True)

    def prepare_own(self) -> None:
        """Have own images as the files that jobs read, in the storage."""
        from mgdm_ray.data.sources.prepare import prepare

        folder = self.store.root / "data"
        ready = []
        for index, dataset in enumerate(self.config.datasets):
            try:
                ready.append(prepare(dataset, self.config.data_dir, folder))
            except InputError as error:
                raise InputError(f"{self.arguments.study}: datasets[{index}]: {error}") from None
        self.read = self.config.model_copy(update={"datasets": tuple(ready)})

    def run(self) -> int:
        weights.require_timm(self.config)
        if "absent" in self.fingerprints.values():
            self.check_data()
            return Study(self.arguments).run()  # keys depend on what has just arrived
        self.check_data()
        started = time.monotonic()
        self.store.sweep()
        if self.leads():
            self.write_inputs()
        else:
            print(f"{self.leader()} works on this study too, and writes its report", flush=True)
        known = self.study_status.finished()
        if not self.arguments.retry_failed:
            known = {**self.study_status.lasting_failures(), **known}
        known = self.study_status.gated(known, self.config.limits)
        todo = {key: job for key, job in self.plan.jobs.items() if key not in known}
        say = f"study {self.config.name}: {len(self.plan.jobs)} jobs, {len(known)} known, "
        print(f"{say}{len(todo)} to do; storage {self.store.location}", flush=True)
        if todo:
            self.compute(todo, known)
        _stop_if_interrupted()
        if not self.leads():
            print(f"nothing left to do here; {self.leader()} writes the report", flush=True)
            while not self.leads():
                time.sleep(1)
        from mgdm_ray.cli.summary import summary

        finalizer = self.finalizer()
        finalizer.close(known, time.monotonic() - started)
        share_notes(self.store, self.folder)
        return DONE if summary(finalizer, known) else FAILED

    def finalizer(self) -> Finalizer:
        command = _command_line(self.arguments.words)
        read = self.read.datasets
        return Finalizer(
            self.config, read, self.plan, self.store, self.fingerprints, command, self.started
        )

    def leads(self) -> bool:
        """Whether this driver writes the study's records, MLflow and report.

        Of several drivers of one study the first does; the others only compute.
        """
        return self.locks.take("study", self.config.name)

    def leader(self) -> str:
        return self.locks.holder("study", self.config.name)

    def write_inputs(self) -> None:
        from mgdm_ray.data.sources.source import own_listing
        from mgdm_ray.data.sources.splits import splits_csv

        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "study.resolved.yaml"
        if (self.folder / REPORT_FILE).is_file() and path.is_file():
            self._say_what_is_replaced(changes(path.read_text(encoding="utf-8"), self.config))
        path.write_text(resolved_text(self.config, self.source), encoding="utf-8")
        rows = [
            {"key": j.key, "kind": j.kind, "label": j.label, "needs": j.needs}
            for j in self.plan.jobs.values()
        ]
        (self.folder / "plan.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        for dataset in self.config.datasets:
            listing = own_listing(dataset, self.config.data_dir)
            if listing is not None:
                path = self.folder / f"splits-{dataset.origin}.csv"
                path.write_text(splits_csv(listing), encoding="utf-8")

    def _say_what_is_replaced(self, changed: Sequence[str]) -> None:
        if not changed:
            return
        names = ", ".join(changed[:CHANGES_SHOWN])
        more = f" and {len(changed) - CHANGES_SHOWN} more" if changed[CHANGES_SHOWN:] else ""
        print(
            f"note: the report in {self.folder} is of a study of this name with another {names}"
            f"{more}; it will be replaced (--set name=... keeps both)",
            flush=True,
        )

    def compute(self, todo: dict[str, Job], known: dict[str, Record]) -> None:
        """Run ``todo`` on Ray; a record goes to ``known``, to disk and to MLflow as it comes."""
        from rich.console import Console

        from mgdm_ray import environment

        environment.prepare(local=self.arguments.address is None)

        from mgdm_ray.cli.progress import Display
        from mgdm_ray.results.mlflow import Mirror
        from mgdm_ray.runtime import engine
        from mgdm_ray.runtime.job_task import Live, RunOptions
        from mgdm_ray.runtime.proposals import require_optuna_takes

        require_optuna_takes(todo.values())
        busy = environment.Busy()
        finalizer, path = self.finalizer(), self.folder / RECORDS_FILE
        resources, leads = self.config.resources, self.leads()
        shared = time.monotonic()
        with (
            engine.cluster(self.arguments.address),
            Mirror(finalizer.connect_mlflow if leads else None) as mirror,
            Display(
                len(self.plan.jobs) - len(todo), [job.kind for job in todo.values()], Console()
            ) as display,
        ):
            _catch_signals()  # ray.init has put its own handlers there
            engine.require_resources(todo.values(), resources)

            def on_live(rows: Mapping[str, Live]) -> None:
                _stop_if_interrupted()
                display.live(rows)

            def on_record(job: Job, record: Record) -> None:
                known[job.key] = record
                note = record.reason if record.status != "done" else _headline(record)
                display.job_ended(job.kind, job.label, record.status, record.seconds, note)
                for row in finalizer.with_trials(record) if leads else ():
                    append_record(path, row)
                    mirror.log(row, finalizer.artefact(row))
                nonlocal shared
                if leads and time.monotonic() - shared > SHARE_EVERY_S:
                    self.store.share(path)
                    shared = time.monotonic()

            options = RunOptions(
                resources,
                engine.trials_at_once(self.config),
                self.config.limits,
                self.arguments.fail_fast,
            )
            engine.run_plan(todo, known, self.context(), options, self.locks, on_record, on_live)
            if self.arguments.address is None:
                display.say(f"computed in {busy}")

    def context(self) -> Context:
        from mgdm_ray.pipeline.tasks.base import Context

        deterministic, batch = self.config.deterministic, self.config.sampling.batch_size
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
            sampling_workers=self.config.resources.sampling_workers,
            compile="never" if deterministic else self.config.resources.compile,
            deterministic=deterministic,
            checkpoint_every={
                "denoiser": self.config.denoiser.checkpoint_every,
                "guide": self.config.guide.checkpoint_every,
            },
        )


def _headline(record: Record) -> str:
    for name in (
        "balanced_accuracy",
        "fd",
        "best_score",
        "fresh_score",
        "balanced_accuracy_over_t",
        "loss",
    ):
        if name in record.metrics:
            return f"{name.replace('_', ' ')} {record.metrics[name]:.3f}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
