"""``python -m mgdm_ray.data check PATH...`` and ``python -m mgdm_ray.data init PATH``."""

from __future__ import annotations

import sys

from mgdm_ray.cli.data import main

if __name__ == "__main__":
    sys.exit(main())
