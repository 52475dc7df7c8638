"""The command line: parse, call, print. Heavy imports wait until a command runs, so that --help is instant."""

from scdfm.cli import data, models, published, scores, screening
from scdfm.cli.app import app, main

__all__ = ["app", "data", "main", "models", "published", "scores", "screening"]
