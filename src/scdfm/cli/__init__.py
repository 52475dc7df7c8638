"""The command line: parse, call, print. Heavy imports wait until a command runs, so that --help is instant."""

from scdfm.cli import examples, inspection, models, published, scores, screening
from scdfm.cli.app import app
from scdfm.cli.entry import main

__all__ = ["app", "examples", "inspection", "main", "models", "published", "scores", "screening"]
