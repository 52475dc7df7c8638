"""Many fits, one table: models over folds and seeds, beside all baselines, with intervals."""

from scdfm.benchmarking.benchmark import Benchmark, benchmark
from scdfm.benchmarking.folds import Fold, Folds
from scdfm.benchmarking.pieces import Scored, run_piece, run_pieces
from scdfm.benchmarking.plan import Contender, PeerOptions, Piece, Plan, make_plan
from scdfm.benchmarking.tables import Tables, aggregate

__all__ = [
    "Benchmark", "Contender", "Fold", "Folds", "PeerOptions", "Piece", "Plan", "Scored", "Tables", "aggregate",
    "benchmark", "make_plan", "run_piece", "run_pieces",
]  # fmt: skip
