"""The plan of jobs and what one job computes; no Ray."""
