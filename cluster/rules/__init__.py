"""The rules of ``cluster/check.py``, one module per kind of file."""
