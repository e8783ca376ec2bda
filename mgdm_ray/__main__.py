"""All commands under one name: ``mgdm-ray COMMAND ...`` or ``python -m mgdm_ray COMMAND ...``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "study": ("mgdm_ray.study", "run a study, or show what it would cost (--plan)"),
    "sample": ("mgdm_ray.sample", "write images or models of a finished study"),
    "doctor": ("mgdm_ray.doctor", "check whether a study can run on this machine"),
    "data": ("mgdm_ray.cli.data", "check your own images, or draft a study for them"),
    "move": ("mgdm_ray.move", "copy a storage to another folder or object store"),
}
"""Name -> module with ``main(argv)``, imported only when its command runs; one line of help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is the command's, or 2 for an unknown command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        code: int = importlib.import_module(COMMANDS[words[0]][0]).main(words[1:])
        return code
    rows = [f"  {name:<8}{about}" for name, (_module, about) in COMMANDS.items()]
    text = "\n".join(
        ["usage: mgdm-ray COMMAND ... (mgdm-ray COMMAND --help shows its options)", *rows]
    )
    if words and words[0] in ("-h", "--help"):
        print(text)
        return 0
    came = f"unknown command {words[0]!r}" if words else "no command given"
    print(f"error: {came}\n{text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
