"""Copy a storage to another place: ``python -m mgdm_ray.move FROM TO``, folders or URLs.

What is there already is left out, so that the same command goes on after a crash. Nothing is
deleted. Searches that are not finished start over there, and MLflow's database stays where it is:
``--report-only`` writes it anew.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence

from mgdm_ray.config import InputError
from mgdm_ray.pipeline.cost_model import PROBES_FILE
from mgdm_ray.pipeline.staging import open_storage
from mgdm_ray.storage.files import within
from mgdm_ray.storage.store import Store

FACTS = ("kind", "key", "record", "files")
"""Of a manifest; the rest is what the artefact was computed from."""


def copy(source: Store, target: Store, say: Callable[[str], None]) -> int:
    """How many artefacts were copied; their checksums are compared with their manifests.

    Raises OSError for one that is not what its manifest says.
    """
    there = set(target.done())
    todo = [pair for pair in source.done() if pair not in there]
    for number, (kind, key) in enumerate(todo, start=1):
        say(f"{number} of {len(todo)}: {kind} {key}")
        manifest, folder = source.manifest(kind, key), source.here(kind, key)
        wrong = source.verify(kind, key)
        if wrong:
            raise OSError(f"{kind} {key}: {wrong}")
        with target.writing(kind, key) as temporary:
            for name in manifest["files"]:
                to = within(temporary, name)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(folder / name, to)
            provenance = {name: value for name, value in manifest.items() if name not in FACTS}
            target.commit(kind, key, temporary, manifest["record"], provenance)
        source.release()
        target.release()
    _copy_notes(source, target)
    return len(todo)


def _copy_notes(source: Store, target: Store) -> None:
    """Records and reports of studies, and what probes measured."""
    for place in ("studies", PROBES_FILE):
        source.bring(source.root / place, anew=True)
    for path in [*(source.root / "studies").rglob("*"), source.root / PROBES_FILE]:
        if path.is_file() and path.suffix != ".db":
            to = target.root / path.relative_to(source.root)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, to)
            target.share(to)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mgdm_ray.move", description=__doc__)
    parser.add_argument("source", metavar="FROM", help="a storage: folder or URL")
    parser.add_argument("target", metavar="TO", help="where to: folder or URL; made if needed")
    arguments = parser.parse_args(argv)
    try:
        source, target = (
            open_storage(arguments.source, write=False),
            open_storage(arguments.target, write=True),
        )
        if not any(source.done()):
            raise InputError(f"{arguments.source} holds no finished artefacts")
        count = copy(source, target, lambda text: print(text, flush=True))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}\nthe same command goes on", file=sys.stderr)
        return 1
    print(f"{count} artefacts copied; {target.location} holds all of {source.location}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
