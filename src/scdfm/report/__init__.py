"""The report: what an evaluation says, for people: a page, its figures, and tables as text."""

from scdfm.report.files import Evaluation, evaluate_files
from scdfm.report.table import markdown, plain
from scdfm.report.write import write

__all__ = ["Evaluation", "evaluate_files", "markdown", "plain", "write"]
