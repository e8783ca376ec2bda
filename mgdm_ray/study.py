"""``python -m mgdm_ray.study STUDY.yaml``: plan, run or report a study."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence

from mgdm_ray.cli.opened_study import OpenedStudy
from mgdm_ray.cli.signals import catch_signals, forget_signals
from mgdm_ray.config import InputError
from mgdm_ray.diffusion.plugins import import_plugins
from mgdm_ray.environment import StartError, StudyStopped

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


def parser() -> argparse.ArgumentParser:
    new = argparse.ArgumentParser(
        prog="python -m mgdm_ray.study",
        description="Run a study; the same command again resumes it. "
        "To check this machine first: python -m mgdm_ray.doctor [STUDY.yaml].",
        epilog="Exit codes: 0 all done, 1 a job failed, 2 wrong input, 130 interrupted.",
    )
    add = new.add_argument
    shipped = "quickstart, medmnist-cpu, grid-cpu, top-up, grid"
    add(
        "study",
        metavar="STUDY.yaml",
        help=f"a study file, or the name of a shipped one ({shipped})",
    )
    add("--plan", action="store_true", help="show jobs, status and cost; start nothing")
    add(
        "--probe",
        action="store_true",
        help="with --plan: measure jobs without timing history (takes minutes)",
    )
    add(
        "--set",
        metavar="A.B=C",
        action="append",
        default=[],
        dest="overrides",
        help="override one value of the study (repeatable)",
    )
    add("--storage", metavar="DIR|URL", help="where everything goes (default: ./runs)")
    add("--address", metavar="ADDR", help="an existing Ray cluster (default: a local one)")
    add("--fail-fast", action="store_true", help="stop at the first failed job")
    add("--retry-failed", action="store_true", help="run jobs again that failed before")
    add(
        "--report-only",
        action="store_true",
        help="rebuild records, report and MLflow from the storage; run nothing",
    )
    return new


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["doctor"]:
        from mgdm_ray import doctor

        return doctor.main(words[1:])
    arguments = parser().parse_args(words)
    command = shlex.join(["python", "-m", "mgdm_ray.study", *words])
    forget_signals()
    catch_signals()
    try:
        import_plugins()
        code = DONE if execute(arguments, command) else FAILED
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # ``--plan | head``: nothing may be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE if arguments.plan else FAILED
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except (StartError, StudyStopped) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except (KeyboardInterrupt, SystemExit) as stop:
        # While Ray starts, its own handler turns SIGTERM into an exit.
        if isinstance(stop, SystemExit) and stop.code != signal.SIGTERM:
            raise
        print(f"\nStopped. Finished jobs are kept; to resume:\n  {command}", file=sys.stderr)
        return INTERRUPTED


def execute(arguments: argparse.Namespace, command: str) -> bool:
    """Do what the arguments ask for; False if a job failed or has not run."""
    if arguments.probe and not arguments.plan:
        raise InputError("--probe measures jobs for a plan; use it together with --plan")
    study = OpenedStudy(
        arguments.study, arguments.overrides, arguments.storage, write=not arguments.plan
    )
    with study.in_use():
        if arguments.plan:
            from mgdm_ray.cli.plan_view import show_plan

            show_plan(study, probe=arguments.probe, retry_failed=arguments.retry_failed)
            return True
        from mgdm_ray.cli import run

        call = run.Invocation(
            command, arguments.address, arguments.fail_fast, arguments.retry_failed
        )
        return (run.report_only if arguments.report_only else run.run)(study, call)


if __name__ == "__main__":
    sys.exit(main())
