"""The report of a compilation as one page that needs nothing else: `blockc report`."""

from __future__ import annotations

from blockc.inspector.report_data import Request, report_data
from blockc.inspector.report_page import page

__all__ = ["Request", "report_page"]


def report_page(request: Request) -> str:
    """The text of the page. LimitError if a machine cannot execute the program."""
    return page(report_data(request))
