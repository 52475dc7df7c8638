"""The report: what an evaluation says, for people: a page, its figures, and tables as text."""

from scdfm.report.evaluation import Evaluation, evaluate_files, write
from scdfm.report.tables import markdown, plain

__all__ = ["Evaluation", "evaluate_files", "markdown", "plain", "write"]
