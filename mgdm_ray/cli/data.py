"""``check`` inspects images before a study; ``init`` writes a first study file."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mgdm_ray.cli import study_draft
from mgdm_ray.config import MEDMNIST, PHANTOMS, InputError, load_study
from mgdm_ray.data.inspection.findings import Finding, identical, judge, nearly_identical
from mgdm_ray.data.inspection.page import Section, refused_section, section_of, write_page
from mgdm_ray.data.inspection.summary import lines
from mgdm_ray.data.inspection.survey import Survey, survey
from mgdm_ray.data.inspection.targets import STUDIES, Source, find_sources, name_of
from mgdm_ray.data.load import data_source
from mgdm_ray.data.sources.folders import is_image
from mgdm_ray.pipeline.plan import make_plan

DONE, ERRORS, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
GLANCE = 32
"""Pixels per side of the images that init reads; it shows none."""
COLUMNS = ("path", "label", "split", "group", "stratum")


def parser() -> argparse.ArgumentParser:
    new = argparse.ArgumentParser(
        prog="python -m mgdm_ray.data",
        description="Inspect your own images, and start a study with them.",
        epilog="Exit codes: 0 done, 1 errors in the data, 2 wrong input.",
    )
    commands = new.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="inspect images; write a page that shows them")
    check.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        help="class folders, a manifest, a Hugging Face folder, an .npz or a study file",
    )
    check.add_argument(
        "--size", type=int, default=64, help="pixels per side of the images on the page"
    )
    check.add_argument("--out", metavar="PAGE.html", help="default: check-NAME.html")
    init = commands.add_parser("init", help="write a study file sized by the data and this machine")
    init.add_argument("path", metavar="PATH", help="class folders, a manifest, ... or an .npz")
    init.add_argument("--out", metavar="STUDY.yaml", help="default: NAME.yaml")
    init.add_argument("--name", help="name of the dataset and the study; default: that of PATH")
    for command in (check, init):
        command.add_argument(
            "--group",
            metavar="REGEX",
            help="regular expression for the patient in the path of an image: '(P[0-9]+)_'",
        )
        command.add_argument(
            "--columns", metavar="path=...,label=...", help="names of a manifest's columns"
        )
    return new


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        return _check(arguments) if arguments.command == "check" else _init(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print("\nStopped; nothing was written.", file=sys.stderr)
        return INTERRUPTED


def _check(arguments: argparse.Namespace) -> int:
    if not 8 <= arguments.size <= 512:
        raise InputError(f"--size {arguments.size}: must be 8 .. 512 pixels")
    columns = _columns(arguments.columns)
    paths = [Path(path) for path in arguments.paths]
    sources = [s for path in paths for s in find_sources(path, arguments.group, columns)]
    for source in sources:
        _require_images(source)
    page = Path(arguments.out or f"check-{name_of(paths[0])}.html")
    if page.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {page}: must end in .html")
    if not page.parent.is_dir():
        raise InputError(f"--out {page}: folder {page.parent} does not exist")
    sections = [_inspect(source, arguments.size) for source in sources]
    write_page(page, f"Check of {', '.join(s.config.name for s in sources)}", sections)
    print(f"page: {page.absolute()}")
    print("It holds images of your data; only you can read it. Keep it as safe as the images.")
    errors = any(finding.level == "error" for part in sections for finding in part["findings"])
    return ERRORS if errors else DONE


def _inspect(source: Source, size: int) -> Section:
    """Print the summary and the findings of ``source``; return its section of the page."""
    try:
        found = survey(source, size)
    except InputError as error:
        refused = Finding("error", str(error))
        print(f"{source.config.name}: {source.path}\n{refused}\n")
        return refused_section(source.config.name, refused)
    if len(found.facts) > 20_000:
        print(f"  comparing {len(found.facts)} images", file=sys.stderr, flush=True)
    copies, near = identical(found), nearly_identical(found)
    findings = judge(found, copies, near)
    print("\n".join([*lines(found), "", *map(str, findings), ""]), flush=True)
    return section_of(found, findings, copies, near)


def _require_images(source: Source) -> None:
    """Raise InputError for a folder without any image: probably a wrong path."""
    if source.kind == "class folders" and not any(
        path.is_file() and is_image(path) for path in source.path.rglob("*")
    ):
        raise InputError(f"{source.path}: no images in it or in its folders")


def _columns(text: str | None) -> dict[str, str]:
    pairs = [part.partition("=") for part in (text or "").split(",") if part]
    for key, separator, value in pairs:
        if key not in COLUMNS or not separator or not value:
            raise InputError(
                f"--columns {text}: must be NAME=COLUMN[,NAME=COLUMN...]; names: "
                f"{', '.join(COLUMNS)}"
            )
    return {key: value for key, _, value in pairs}


def _init(arguments: argparse.Namespace) -> int:
    path = Path(arguments.path)
    if path.suffix.lower() in STUDIES:
        raise InputError(f"{path} is already a study: python -m mgdm_ray.study {path} --plan")
    (source,) = find_sources(path, arguments.group, _columns(arguments.columns))
    _require_images(source)
    name = arguments.name or source.config.name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise InputError(f"--name {name!r}: use at most 64 letters, digits, '.', '_' and '-'")
    if name in (*MEDMNIST, *PHANTOMS):
        raise InputError(f"--name {name!r} is a built-in dataset: choose another name")
    out = Path(arguments.out or f"{name}.yaml")
    if out.suffix.lower() not in STUDIES:
        raise InputError(f"--out {out}: must end in .yaml")
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} exists and is not overwritten: give another --out")
    found = survey(source, GLANCE)
    if not found.facts:
        raise InputError(f"{path}: no image can be read: python -m mgdm_ray.data check {path}")
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(study_draft.study_text(found, name, study_draft.machine()))
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written: {error.strerror or error}") from None
    return _print_next(found, out)


def _print_next(found: Survey, out: Path) -> int:
    """Print what was written and the next commands; 1 where the data must be fixed first."""
    findings = judge(found, identical(found), nearly_identical(found))
    errors = [finding for finding in findings if finding.level == "error"]
    study = load_study(out)
    print(f"wrote {out}: {len(found.facts)} images, {len(found.listing.classes)} classes", end="")
    try:
        prints = {d.name: data_source(d, study.data_dir).fingerprint() for d in study.datasets}
        plan = make_plan(study, prints)
        print(f", {len(plan.jobs)} jobs, {len(plan.cells())} of which train and test a network")
    except InputError as error:
        print()
        errors = errors or [Finding("error", str(error))]
    if errors:
        print("\n".join(map(str, errors)))
        print(f"fix these first: python -m mgdm_ray.data check {shlex.quote(str(out))}")
        return ERRORS
    name = shlex.quote(str(out))
    print(
        "next: review the file (patients, classes, licence), then\n"
        f"  python -m mgdm_ray.data check {name}     inspect the images\n"
        f"  python -m mgdm_ray.study {name} --plan   list the jobs and their time\n"
        "  python -m mgdm_ray.study doctor          check this machine\n"
        f"  python -m mgdm_ray.study {name}          run; run again to resume"
    )
    return DONE
