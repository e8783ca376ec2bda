"""Check whether a study can run here: ``python -m mgdm_ray.doctor [STUDY.yaml]``.

``python -m mgdm_ray.study doctor`` is the same command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mgdm_ray.cli.doctor_checks import CHECKS, Setup, examine
from mgdm_ray.config import InputError, load_study


def main(argv: Sequence[str] | None = None) -> int:
    """0: a study can run here, 1: something prevents it, 2: wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m mgdm_ray.doctor",
        description="Check whether a study can run here; starts Ray briefly, changes nothing.",
    )
    parser.add_argument("study", metavar="STUDY.yaml", nargs="?", help="check its data as well")
    parser.add_argument("--storage", metavar="DIR|URL", help="where results would go")
    arguments = parser.parse_args(argv)
    try:
        config = load_study(arguments.study) if arguments.study else None
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    setup = Setup(config, arguments.storage or (config.storage if config else "runs"))
    problems = 0
    for check in CHECKS:
        for line in examine(check, setup):
            print(f"{line.word:<4} {line.text}", flush=True)
            problems += line.word == "no"
    found = f"{problems} problem{'' if problems == 1 else 's'} found."
    print(found if problems else "Ready: no problems found.")
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
