"""Copy a storage: ``python -m mgdm_ray.move FROM TO``, folders or URLs.

Skips what the target has, so the same command continues after a crash. Deletes nothing. Unfinished
searches start over at the target, and MLflow's database is not copied (--report-only writes it).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence

from mgdm_ray.config import InputError
from mgdm_ray.pipeline.cost_model import PROBES_FILE
from mgdm_ray.pipeline.staging import open_storage
from mgdm_ray.results.openings import FOLDER as OPENINGS
from mgdm_ray.storage.files import within
from mgdm_ray.storage.store import Store

FACTS = ("kind", "key", "record", "files")
"""Fields of a manifest that are not provenance."""


def copy(source: Store, target: Store, on_artefact: Callable[[str], None]) -> int:
    """Copy artefacts, records, openings, reports and probes; return how many artefacts were copied.

    Raises OSError if an artefact does not match the checksums in its manifest.
    """
    there = set(target.done())
    todo = [pair for pair in source.done() if pair not in there]
    for number, (kind, key) in enumerate(todo, start=1):
        on_artefact(f"{number} of {len(todo)}: {kind} {key}")
        manifest, folder = source.manifest(kind, key), source.here(kind, key)
        if wrong := source.verify(kind, key):
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
    for name in ("studies", OPENINGS, PROBES_FILE):
        source.bring(source.root / name, anew=True)
    folders = (source.root / "studies", source.root / OPENINGS)
    for path in [*(p for f in folders for p in f.rglob("*")), source.root / PROBES_FILE]:
        if path.is_file() and path.suffix != ".db":
            to = target.root / path.relative_to(source.root)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, to)
            target.share(to)
    return len(todo)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mgdm_ray.move", description=__doc__)
    parser.add_argument("source", metavar="FROM", help="a storage: folder or URL")
    parser.add_argument("target", metavar="TO", help="folder or URL; created if needed")
    arguments = parser.parse_args(argv)
    try:
        source = open_storage(arguments.source, write=False)
        target = open_storage(arguments.target, write=True)
        if not any(source.done()):
            raise InputError(f"{arguments.source}: no finished artefacts; give a storage as FROM")
        count = copy(source, target, lambda text: print(text, flush=True))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}\nrun the same command again to continue", file=sys.stderr)
        return 1
    print(f"{count} copied; {target.location} contains all artefacts of {source.location}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
