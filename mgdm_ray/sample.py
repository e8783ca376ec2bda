"""Write images or models of a finished study: ``python -m mgdm_ray.sample STUDY ...``."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from mgdm_ray.config import SAMPLED_ARMS, DatasetConfig, InputError
from mgdm_ray.diffusion.plugins import import_plugins
from mgdm_ray.results.export.finished import FinishedStudy
from mgdm_ray.results.export.labelled_folder import new_folder, require_free
from mgdm_ray.results.export.made_images import MadeImages, Mix, Request
from mgdm_ray.storage.remote.objects import ObjectsError

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
MOST_IMAGES = 10_000_000
RANGES = {
    "number": (1, MOST_IMAGES),
    "first": (0, MOST_IMAGES),
    "seed": (0, 2**63 - 1),
    "batch": (1, 100_000),
}
PROGRESS_EVERY_S = 5.0


def parser() -> argparse.ArgumentParser:
    new = argparse.ArgumentParser(
        prog="python -m mgdm_ray.sample",
        description="Write labelled synthetic images of a finished study, or its models.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong input, 130 interrupted.",
    )
    add = new.add_argument
    add("study", metavar="STUDY", help="a study file, or the name of a study in the storage")
    add("--storage", metavar="DIR|URL", help="its storage (default: the study's, else ./runs)")
    add("--dataset", metavar="NAME", help="which one, if the study has several")
    add("--number", metavar="N", type=int, help="how many images")
    add("--out", metavar="FOLDER", help="write images here; a new or empty folder")
    add("--export", metavar="FOLDER", help="write the models here; a new or empty folder")
    add("--arm", choices=SAMPLED_ARMS, default="disturb", help="default: disturb")
    add(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="changes",
        help="change one value of the setting, e.g. uncertainty_scale=0.2 (repeatable)",
    )
    add("--network", metavar="NAME", help="whose setting, if each network had its own search")
    add("--label", metavar="NAME|INDEX", help="images of this class only")
    add("--classes", choices=get_args(Mix), help="mix of the classes (default: study)")
    add("--seed", type=int, help="default: the study's, which gives the study's own images")
    add("--first", metavar="I", type=int, default=0, help="index of the first image (default: 0)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda if available)")
    add("--batch", metavar="N", type=int, help="images per forward pass (default: the study's)")
    add("--pictures-anyway", action="store_true", help="write even if the study forbids pictures")
    return new


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    # SIGTERM, too, must delete the unfinished folder.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        import_plugins()
        return run(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except (OSError, ObjectsError) as error:
        print(f"error: {error}; nothing was written", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was written.", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    study = FinishedStudy.open(arguments.study, arguments.storage)
    dataset = study.dataset(arguments.dataset)
    if not dataset.pictures and not arguments.pictures_anyway:
        raise InputError(
            f"the study sets pictures: false for {dataset.name}: its images must not be shared, "
            "and images or models made from them can reveal some of them; --pictures-anyway "
            "overrides this at your own responsibility"
        )
    try:
        if arguments.export:
            from mgdm_ray.results.export.export import export

            with new_folder(Path(arguments.export), "--export") as folder:
                export(study, dataset, folder, arguments.network)
            print(f"models of {dataset.name}: {arguments.export} (described in README.md)")
        if arguments.out:
            _sample(study, dataset, arguments)
    finally:
        study.store.release()
    return DONE


def _check(arguments: argparse.Namespace) -> None:
    """Raise InputError for arguments that are wrong whatever the study."""
    for option in ("out", "export"):
        if getattr(arguments, option):
            require_free(Path(getattr(arguments, option)).expanduser(), f"--{option}")
    if not arguments.out and not arguments.export:
        raise InputError("give --out FOLDER and --number N for images, or --export FOLDER")
    if bool(arguments.out) != (arguments.number is not None):
        raise InputError("--out FOLDER and --number N go together: give both")
    if arguments.label is not None and arguments.classes is not None:
        raise InputError("--label and --classes exclude each other: give one of them")
    for option, (least, most) in RANGES.items():
        value = getattr(arguments, option)
        if value is not None and not least <= value <= most:
            raise InputError(f"--{option}: must be in {least} .. {most}; got {value}")


def _sample(study: FinishedStudy, dataset: DatasetConfig, arguments: argparse.Namespace) -> None:
    names = ("number", "arm", "first", "seed", "label", "network", "changes", "device", "batch")
    options = {name: getattr(arguments, name) for name in names}
    images = MadeImages(study, dataset, Request(**options, mix=arguments.classes or "study"))
    if refused := images.judged()[1]:
        print(f"warning: the study refused its own images of this arm: {refused}", file=sys.stderr)
    started = shown = time.monotonic()

    def on_progress(written: int, stage: str, done: int, total: int) -> None:
        nonlocal shown
        if (now := time.monotonic()) - shown < PROGRESS_EVERY_S:
            return
        shown, (minutes, seconds) = now, divmod(int(now - started), 60)
        text = f"{written} of {arguments.number} images written; {stage} {done} of the next {total}"
        print(f"  {minutes}:{seconds:02d} {text}", file=sys.stderr, flush=True)

    images.write(Path(arguments.out), on_progress)
    text = f"{arguments.number} images of {dataset.name}: {arguments.out}"
    print(f"{text} (described in manifest.json)")


if __name__ == "__main__":
    sys.exit(main())
