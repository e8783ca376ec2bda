"""Records -> tables, figures and one self-contained HTML page."""

from mgdm_ray.results.report.answer import ANSWER_FILE, HEADLINE_FILE
from mgdm_ray.results.report.builder import ReportContext
from mgdm_ray.results.report.cells import result_rows, result_table
from mgdm_ray.results.report.write import write_report

__all__ = [
    "ANSWER_FILE",
    "HEADLINE_FILE",
    "ReportContext",
    "result_rows",
    "result_table",
    "write_report",
]
