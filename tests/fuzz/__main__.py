"""``python -m tests.fuzz [--cases N] [--seed N] [--target NAME]``: exit code 1 for any failure."""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path

from tests.fuzz import npz_files, own_images, storages, study_files
from tests.fuzz.harness import Case, Tally, limit_memory, run_cases

TARGETS: dict[str, tuple[Case, float]] = {
    "study files": (study_files.case, 0.3),
    "overrides": (study_files.override_case, 0.15),
    ".npz": (npz_files.case, 0.2),
    "storage": (storages.case, 0.15),
    "own images": (own_images.case, 0.2),
}
"""What is run, and its share of the cases."""


def child(target: str, cases: int, seed: int) -> None:
    """Run one target here, within bounded memory, and print its tally as JSON."""
    logging.disable()
    warnings.simplefilter("ignore")
    case, _ = TARGETS[target]
    limit_memory()
    with tempfile.TemporaryDirectory() as guarded:
        print(json.dumps(asdict(run_cases(target, case, cases, seed, Path(guarded)))))


def run(target: str, cases: int, seed: int) -> Tally:
    """The target in a process of its own: a crash of the interpreter is a failure, too."""
    command = [sys.executable, "-m", "tests.fuzz", "--child", "--target", target]
    command += ["--cases", str(cases), "--seed", str(seed)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60 + cases
        )
    except subprocess.TimeoutExpired:  # compiled code hears no alarm
        return Tally(target, failures=[f"{cases} cases took more than {60 + cases} s"])
    if done.returncode:
        said = done.stderr[-2000:]
        return Tally(target, failures=[f"ended with exit code {done.returncode}: {said}"])
    return Tally(**json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--cases", type=int, default=10_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS, help="only this one")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.target, given.cases, given.seed)
        return 0
    print(f"{'target':12} {'cases':>6} {'refused':>8} {'accepted':>8} {'slowest':>8} {'peak':>8}")
    failures: list[str] = []
    for target, (_, share) in TARGETS.items():
        if given.target in (None, target):
            count = given.cases if given.target else round(given.cases * share)
            one = run(target, count, given.seed)
            print(
                f"{target:12} {one.cases:6} {one.refused:8} {one.accepted:8} "
                f"{one.slowest:6.1f} s {one.peak_mb:5.0f} MB",
                flush=True,
            )
            failures += [f"{target}: {failure[-3000:]}" for failure in one.failures]
    print(*failures, sep="\n")
    print(f"{len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
