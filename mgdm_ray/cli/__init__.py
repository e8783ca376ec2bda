"""What the commands print: plans, progress, the end of a run, ``data check`` and ``init``."""
