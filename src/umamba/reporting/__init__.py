"""The report of a study: tables in the paper's form, plots, gallery and cost, from the files of its runs alone."""

from umamba.reporting.compare import Number, numbers
from umamba.reporting.report import write_report
from umamba.reporting.results import Results, gather

__all__ = ["Number", "Results", "gather", "numbers", "write_report"]
