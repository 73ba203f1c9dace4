"""The report of a study: tables in the paper's form, plots, pictures of cases and cost, read from files only."""

from umamba.reporting.compare import Claim, Number, claims_of, numbers
from umamba.reporting.results import Results, gather
from umamba.reporting.write import write_report

__all__ = ["Claim", "Number", "Results", "claims_of", "gather", "numbers", "write_report"]
