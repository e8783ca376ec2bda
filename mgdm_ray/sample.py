"""Labelled images, or the models, of a finished study: ``python -m mgdm_ray.sample STUDY ...``.

With the study's own seed, image i is the study's own image i, where the labels agree; another seed
gives new images.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mgdm_ray.config import SAMPLED_ARMS, DatasetConfig, InputError, SampledArm
from mgdm_ray.data.info import dataset_info
from mgdm_ray.diffusion.plugins import import_plugins
from mgdm_ray.results.export.finished import FinishedStudy
from mgdm_ray.results.export.labelled_folder import LabelledFolder, new_folder, require_free
from mgdm_ray.results.export.made_images import MadeImages, make_images, mixed_labels
from mgdm_ray.storage.remote.objects import ObjectsError

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
CLASSES = ("study", "training", "balanced")
MOST_IMAGES = 10_000_000
SAY_EVERY_S = 5.0


def parser() -> argparse.ArgumentParser:
    new = argparse.ArgumentParser(
        prog="python -m mgdm_ray.sample",
        description="Write labelled synthetic images of a finished study, or its models.",
        epilog="Exit codes: 0 done, 1 failed, 2 the input is wrong, 130 interrupted.",
    )
    add = new.add_argument
    add("study", metavar="STUDY", help="a study file, or the name of a study in the storage")
    add("--storage", metavar="DIR|URL", help="where it ran (default: the study's, else ./runs)")
    add("--dataset", metavar="NAME", help="which one, where the study has several")
    add("--number", metavar="N", type=int, help="how many images")
    add("--out", metavar="FOLDER", help="write images here; a new or empty folder")
    add("--export", metavar="FOLDER", help="write the models here; a new or empty folder")
    add("--arm", choices=SAMPLED_ARMS, help="how images are made (default: disturb)")
    add(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="changes",
        help="change one value of the setting, e.g. uncertainty_scale=0.2 (repeatable)",
    )
    add("--network", metavar="NAME", help="whose setting, where each network had its own search")
    add("--label", metavar="NAME|INDEX", help="images of this class only")
    add("--classes", choices=CLASSES, help="mix of the classes (default: study)")
    add("--seed", type=int, help="default: the study's, which gives the study's own images")
    add("--first", metavar="I", type=int, default=0, help="index of the first image (default: 0)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    add("--batch", metavar="N", type=int, help="images per forward (default: the study's)")
    add(
        "--pictures-anyway",
        action="store_true",
        help="write although the study says pictures: false",
    )
    return new


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
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
        print("\nStopped; nothing was written.", file=sys.stderr)
        return INTERRUPTED


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    study = FinishedStudy.open(arguments.study, arguments.storage)
    dataset = study.dataset(arguments.dataset)
    if not dataset.pictures and not arguments.pictures_anyway:
        raise InputError(
            f"the study says pictures: false of {dataset.name}: its images may not be passed on, "
            "and images or models made from them can give some away; with --pictures-anyway it is "
            "your responsibility"
        )
    try:
        if arguments.export:
            _export(study, dataset, arguments)
        if arguments.out:
            _sample(study, dataset, arguments)
    finally:
        study.store.release()
    return DONE


def _check(arguments: argparse.Namespace) -> None:
    """What can be told without the study."""
    for option in ("out", "export"):
        if getattr(arguments, option):
            require_free(Path(getattr(arguments, option)).expanduser(), f"--{option}")
    if not arguments.out and not arguments.export:
        raise InputError("give --out FOLDER for images (with --number), or --export FOLDER")
    if bool(arguments.out) != (arguments.number is not None):
        raise InputError("--out FOLDER and --number N go together: give both")
    if arguments.label is not None and arguments.classes is not None:
        raise InputError("--label and --classes exclude each other: give one of them")
    for option, least, most in (
        ("number", 1, MOST_IMAGES),
        ("first", 0, MOST_IMAGES),
        ("seed", 0, 2**63 - 1),
        ("batch", 1, 100_000),
    ):
        value = getattr(arguments, option)
        if value is not None and not least <= value <= most:
            raise InputError(f"--{option}: must be in {least} .. {most}; got {value}")


def _export(study: FinishedStudy, dataset: DatasetConfig, arguments: argparse.Namespace) -> None:
    from mgdm_ray.results.export.export import export

    with new_folder(Path(arguments.export), "--export") as folder:
        export(study, dataset, folder, arguments.network)
    print(f"models of {dataset.name}: {arguments.export} (README.md says what they are)")


def _device(given: str | None) -> str:
    import torch

    if given is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=torch.device(given))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"--device {given}: cannot be used here ({reason}); cpu always can"
        ) from None
    return given


def _sample(study: FinishedStudy, dataset: DatasetConfig, arguments: argparse.Namespace) -> None:
    from mgdm_ray.diffusion.pipeline import NonFiniteSample

    arm: SampledArm = arguments.arm or "disturb"
    chosen = study.choose(dataset.name, arm, arguments.network, arguments.changes)
    labels = _labels(study, dataset, arguments)
    wanted = MadeImages.of(
        study, dataset, arm, chosen, labels, first=arguments.first, seed=arguments.seed
    )
    device, manifest = _device(arguments.device), wanted.manifest()
    refused = manifest["refused_by_the_limits_of_the_study"]
    if refused:
        print(f"warning: the study refused its own images of this arm: {refused}", file=sys.stderr)
    with new_folder(Path(arguments.out), "--out") as temporary:
        folder = LabelledFolder(temporary, wanted.info.classes, wanted.facts())
        try:
            make_images(
                wanted, folder, device, arguments.batch, _Progress(folder, arguments.number)
            )
        except NonFiniteSample as error:
            raise InputError(
                f"{error}: the guidance is too strong for this model; give smaller scales, e.g. "
                "--set uncertainty_scale=0.1"
            ) from None
        folder.close(manifest)
    say = f"{arguments.number} images of {dataset.name}: {arguments.out}"
    print(f"{say} (manifest.json says what they are)")


def _labels(
    study: FinishedStudy, dataset: DatasetConfig, arguments: argparse.Namespace
) -> NDArray[np.int64]:
    """By index, those before ``--first`` too."""
    from mgdm_ray.results.export.api import label_of

    info, stop = dataset_info(dataset, study.config.data_dir), arguments.first + arguments.number
    if arguments.label is not None:
        return np.full(stop, label_of(arguments.label, info.classes), dtype=np.int64)
    return mixed_labels(study, dataset, info.num_classes, arguments.classes or "study", stop)


class _Progress:
    """A line every few seconds; nothing of what is over sooner."""

    def __init__(self, folder: LabelledFolder, images: int) -> None:
        self.folder, self.images = folder, images
        self.started = self.said = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.said < SAY_EVERY_S:
            return
        self.said = now
        passed = int(now - self.started)
        print(
            f"  {passed // 60}:{passed % 60:02d} {sum(self.folder.counts)} of {self.images} images "
            f"written; {stage} {done} of the next {total}",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing half written stays
    sys.exit(main())
