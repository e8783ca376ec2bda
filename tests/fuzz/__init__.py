"""Made-up and damaged input for all that reads files: ``python -m tests.fuzz --cases 10000``."""
