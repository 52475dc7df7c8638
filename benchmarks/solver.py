"""Error against velocity evaluations of each solver, on a trained run.

    python benchmarks/solver.py RUN [--cells 24] [--condition A+B]

The reference integrates the same noise in 300 midpoint steps. Printed: root-sum-square difference of a cell (mean over
cells) and of the population mean, over the run's panel, in log1p units.
"""

from __future__ import annotations

import argparse

import torch

import scdfm
from scdfm.flow import generate
from scdfm.seeds import torch_rng

EVALUATIONS = {"euler": 1, "midpoint": 2, "rk4": 4}
TRIED = [("euler", 20), ("euler", 100), ("midpoint", 4), ("midpoint", 8), ("midpoint", 10), ("midpoint", 20),
         ("rk4", 2), ("rk4", 3), ("rk4", 4), ("rk4", 5), ("rk4", 19)]  # fmt: skip


def main() -> None:
    """Print one row per solver and number of steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--condition")
    args = parser.parse_args()
    run = scdfm.Run.load(args.run)
    controls = run.controls.X[: args.cells][:, run.controls.columns(run.genes)]
    control = torch.from_numpy(controls.toarray())
    name = args.condition or run.split.test[0]
    perturbation = run.encoder.encode([name])
    genes = torch.from_numpy(run.vocabulary.gene_ids(run.genes))
    condition = torch.zeros(len(control), dtype=torch.long)

    def population(solver: str, steps: int) -> torch.Tensor:
        options = run.config.sampling.model_copy(update={"solver": solver, "steps": steps, "clamp": False})
        size = run.config.flow.genes_per_step
        return generate(run.field, control, perturbation, condition, genes, options, size, torch_rng(0, "noise"))

    reference = population("midpoint", 300)
    print("| solver | steps | evaluations | cell | population mean |\n|---|---:|---:|---:|---:|")
    for solver, steps in TRIED:
        found = population(solver, steps)
        cell = (found - reference).norm(dim=1).mean()
        mean = (found.mean(0) - reference.mean(0)).norm()
        print(f"| {solver} | {steps} | {steps * EVALUATIONS[solver]} | {cell:.4f} | {mean:.4f} |")


if __name__ == "__main__":
    main()
