"""Spread, paired contrasts, ranks, what can be resolved, and what may be concluded from it.

docs/statistics.md says of each number its formula, its premises and its source.
"""
