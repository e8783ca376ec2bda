"""What people see, in a real Chromium: the report opened from disk, and MLflow's pages.

Mirrors no part of the package: the pages are made by report, tracking and closing together, through
the command line. Without Chromium or playwright these tests skip.
"""
