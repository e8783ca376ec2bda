"""``check`` looks at images and says what would spoil a study; ``init`` begins one."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mgdm_ray.cli import study_draft
from mgdm_ray.config import MEDMNIST, PHANTOMS, InputError, load_study
from mgdm_ray.data.inspection.duplicates import identical, nearly_identical
from mgdm_ray.data.inspection.findings import Finding, judge
from mgdm_ray.data.inspection.page import refused_section, section_of, write_page
from mgdm_ray.data.inspection.summary import lines
from mgdm_ray.data.inspection.survey import Survey, survey
from mgdm_ray.data.inspection.targets import STUDIES, Source, find_sources, name_of
from mgdm_ray.data.load import fingerprint
from mgdm_ray.data.sources.folders import is_image
from mgdm_ray.pipeline.plan import make_plan

DONE, SPOILT, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
GLANCE = 32
"""Pixels a side that init reads images to; it shows none."""
COLUMNS = ("path", "label", "split", "group", "stratum")


def parser() -> argparse.ArgumentParser:
    new = argparse.ArgumentParser(
        prog="python -m mgdm_ray.data",
        description="Look at your own images, and begin a study with them.",
        epilog="Exit codes: 0 done, 1 the data would spoil a study, 2 the input is wrong.",
    )
    commands = new.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="what is there, and what would spoil a study")
    check.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        help="class folders, a manifest, a Hugging Face folder, an .npz or a study file",
    )
    check.add_argument(
        "--size", type=int, default=64, help="pixels a side of the images on the page"
    )
    check.add_argument("--out", metavar="PAGE.html", help="default: check-NAME.html")
    init = commands.add_parser(
        "init", help="write a study file that fits the data and this machine"
    )
    init.add_argument("path", metavar="PATH", help="class folders, a manifest, ... or an .npz")
    init.add_argument("--out", metavar="STUDY.yaml", help="default: NAME.yaml")
    init.add_argument("--name", help="of the dataset and the study; default: that of PATH")
    for command in (check, init):
        command.add_argument(
            "--group",
            metavar="REGEX",
            help="names the patient in the path of an image: '(P[0-9]+)_'",
        )
        command.add_argument(
            "--columns", metavar="path=...,label=...", help="what a manifest's columns are called"
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
        raise InputError(f"--size {arguments.size}: 8 .. 512 pixels")
    columns = _columns(arguments.columns)
    paths = [Path(path) for path in arguments.paths]
    sources = [s for path in paths for s in find_sources(path, arguments.group, columns)]
    for source in sources:
        _require_images(source)
    page = Path(arguments.out or f"check-{name_of(paths[0])}.html")
    if page.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {page}: the name of a page ends in .html")
    if not page.parent.is_dir():
        raise InputError(f"--out {page}: there is no folder {page.parent}")
    parts, spoilt = [], False
    for source in sources:
        part, bad = _look_at(source, arguments.size)
        parts.append(part)
        spoilt = spoilt or bad
    write_page(page, f"Check of {', '.join(s.config.name for s in sources)}", parts)
    print(f"page: {page.absolute()}")
    print("It holds images of your data; only you can read it. Keep it like the images themselves.")
    return SPOILT if spoilt else DONE


def _look_at(source: Source, size: int) -> tuple[str, bool]:
    """Print what ``source`` is like; its part of the page, and whether it would spoil a study."""
    try:
        found = survey(source, size)
    except InputError as error:
        refused = Finding("error", str(error))
        print(f"{source.config.name}: {source.path}\n{refused}\n")
        return refused_section(source.config.name, refused), True
    if len(found.facts) > 20_000:
        print(f"  comparing {len(found.facts)} images", file=sys.stderr, flush=True)
    twins, near = identical(found), nearly_identical(found)
    findings = judge(found, twins, near)
    print("\n".join([*lines(found), "", *map(str, findings), ""]), flush=True)
    part = section_of(found, findings, twins, near)
    return part, any(finding.level == "error" for finding in findings)


def _require_images(source: Source) -> None:
    """A folder without any image is another folder than was meant."""
    if source.kind != "class folders":
        return
    for folder, _, files in os.walk(source.path):
        if any(is_image(name) or "." not in name for name in files):
            return
        if len(Path(folder).parts) - len(source.path.parts) > 20:
            break
    raise InputError(f"{source.path}: no images in it or in its folders")


def _columns(text: str | None) -> dict[str, str]:
    pairs = [part.partition("=") for part in (text or "").split(",") if part]
    for key, separator, value in pairs:
        if key not in COLUMNS or not separator or not value:
            raise InputError(
                f"--columns {text}: give NAME=COLUMN, several with commas; names: "
                f"{', '.join(COLUMNS)}"
            )
    return {key: value for key, _, value in pairs}


def _init(arguments: argparse.Namespace) -> int:
    path = Path(arguments.path)
    if path.suffix.lower() in STUDIES:
        raise InputError(f"{path} is a study file already: python -m mgdm_ray.study {path} --plan")
    (source,) = find_sources(path, arguments.group, _columns(arguments.columns))
    _require_images(source)
    name = arguments.name or source.config.name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise InputError(f"--name {name!r}: letters, digits, '.', '_' and '-', 64 at most")
    if name in (*MEDMNIST, *PHANTOMS):
        raise InputError(f"--name {name!r} is a built-in dataset: take another one")
    out = Path(arguments.out or f"{name}.yaml")
    if out.suffix.lower() not in STUDIES:
        raise InputError(f"--out {out}: the name of a study file ends in .yaml")
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} is there already, and is not overwritten: give another --out")
    found = survey(source, GLANCE)
    if not found.facts:
        raise InputError(f"{path}: none of its images can be read; see check")
    text = study_draft.study_text(found, name, study_draft.machine())
    _write_new(out, text)
    return _say_next(found, out)


def _write_new(out: Path, text: str) -> None:
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written: {error.strerror or error}") from None


def _say_next(found: Survey, out: Path) -> int:
    """Print what was written and what comes next; 1 where the data must be mended first."""
    findings = judge(found, identical(found), nearly_identical(found))
    errors = [finding for finding in findings if finding.level == "error"]
    study = load_study(out)
    print(f"wrote {out}: {len(found.facts)} images, {len(found.listing.classes)} classes", end="")
    try:
        prints = {d.name: fingerprint(d, study.data_dir) for d in study.datasets}
        plan = make_plan(study, prints)
        print(f", {len(plan.jobs)} jobs, {len(plan.cells())} of them networks trained and tested")
    except InputError as error:
        print()
        errors = errors or [Finding("error", str(error))]
    if errors:
        print("\n".join(map(str, errors)))
        print(f"mend these first: python -m mgdm_ray.data check {shlex.quote(str(out))}")
        return SPOILT
    name = shlex.quote(str(out))
    print(
        "next: read it (patients, classes, licence), then\n"
        f"  python -m mgdm_ray.data check {name}          look at the images\n"
        f"  python -m mgdm_ray.study {name} --plan        what it will do\n"
        "  python -m mgdm_ray.study doctor                whether this machine is ready\n"
        f"  python -m mgdm_ray.study {name}               run it; again resumes"
    )
    return DONE
