"""The prior and the frame of a fit: learned from training conditions alone, once, before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scdfm.data import CONTROL, CellTable, Split
from scdfm.data.conditions import control_of
from scdfm.data.sampler import population
from scdfm.data.stored import in_memory, subset
from scdfm.prior import Frame, LearnedPrior, Origins, fit_frame, learn_prior
from scdfm.prior.kernel import Floats, every_target
from scdfm.prior.origins import TENSORS
from scdfm.run import folder
from scdfm.seeds import numpy_rng, torch_rng
from scdfm.training.checkpoint import CHECKPOINTS
from scdfm.training.inputs import Inputs

FRAME_CELLS = 4000
"""Training cells whose residuals the frame is fitted to."""
ORIGINS = "origins.safetensors"


def write_origins(cells: CellTable, split: Split, inputs: Inputs, out: Path) -> None:
    """Learn the prior and the frame, and write them and the origins of the fit's conditions, unless they are there.

    The prior that is kept for prediction knows the validation conditions too; they start from what the training
    conditions alone let expect, here as whenever they are predicted.
    """
    if (out / CHECKPOINTS / ORIGINS).is_file():
        return
    (out / CHECKPOINTS).mkdir(exist_ok=True)
    residual = _residual(cells, split.train, inputs)
    frame = fit_frame(*residual, torch_rng(inputs.manifest.seed, "zeros"))
    folder.write_frame(out / folder.FRAME, frame)
    variances = residual.variances()
    learned = _learned(cells, split.train, variances, inputs)
    known = learned
    if split.validation:
        known = _learned(cells, (*split.train, *split.validation), variances, inputs)
        learned.prior.save(out / folder.TRAINING_PRIOR)
    known.prior.save(out / folder.PRIOR)
    origins = _origins(cells, split, inputs, learned, frame)
    folder.write_tensors(out / CHECKPOINTS / ORIGINS, {name: getattr(origins, name) for name in TENSORS})


def read_origins(split: Split, inputs: Inputs, out: Path) -> Origins:
    """The origins that `write_origins` left in the run folder."""
    tensors = folder.read_tensors(out / CHECKPOINTS / ORIGINS)
    names = (*split.train, *split.validation, *inputs.manifest.control_populations)
    frame = folder.read_frame(out / folder.FRAME, len(inputs.panel.genes))
    return Origins(frame, names, *(tensors[name] for name in TENSORS))


def _learned(cells: CellTable, names: Sequence[str], variances: Floats, inputs: Inputs) -> LearnedPrior:
    columns = cells.columns(inputs.panel.genes)
    controls = np.stack([cells.control_mean(name)[columns] for name in names])
    shifts = cells.means(names).to_numpy()[:, columns] - controls
    counts = [cells.n_cells(name) for name in names]
    return learn_prior(
        names, shifts, counts, variances, inputs.panel.genes, inputs.encoder.descriptions, controls
    )


def _origins(cells: CellTable, split: Split, inputs: Inputs, learned: LearnedPrior, frame: Frame) -> Origins:
    """Training, validation and control conditions at the means expected of them."""
    options, columns = inputs.manifest.config.flow, cells.columns(inputs.panel.genes)
    own = learned.left_out if options.prior_means == "leave_one_out" else learned.prior.predict(split.train)
    shifts = dict(zip(split.train, own, strict=True))
    controls = {name: cells.control_mean(name)[columns] for name in (*split.train, *split.validation)}
    settings = {control_of(name): controls[name] for name in split.validation}
    validated = learned.prior.knowing(every_target(split.validation), inputs.encoder.descriptions, settings)
    shifts |= dict(zip(split.validation, validated.predict(split.validation), strict=True))
    doubts = dict.fromkeys(split.train, 0.0) | dict(
        zip(split.validation, validated.doubt(split.validation), strict=True)
    )
    for name in inputs.manifest.control_populations:
        rows = population(cells, name)
        controls[name] = cells.take(rows).mean(CONTROL)[columns]
        shifts[name] = np.zeros(len(columns))
        doubts[name] = 0.0
    return Origins.around(frame, controls, shifts, doubts)


class Residual(NamedTuple):
    """Training cells [n, G] whose spread is learned, the condition of each, and means and control means [C, G]."""

    cells: Floats
    conditions: npt.NDArray[np.int64]
    means: Floats
    controls: Floats

    def variances(self) -> Floats:
        """Variance of each gene [G] around the means, unbiased within each condition."""
        counts = np.bincount(self.conditions)
        unbiased = len(self.cells) / max(len(self.cells) - len(counts), 1)
        return np.asarray(((self.cells - self.means[self.conditions]) ** 2).mean(0) * unbiased)


def _residual(cells: CellTable, names: Sequence[str], inputs: Inputs) -> Residual:
    """As many training cells of each condition as come to FRAME_CELLS, drawn by the config's seed.

    Where no condition has two cells, their control populations tell the spread.
    """
    rng = numpy_rng(inputs.manifest.seed, "frame")
    columns = cells.columns(inputs.panel.genes)
    chosen = {name: cells.rows(name) for name in names if cells.n_cells(name) > 1}
    means = cells.means(list(chosen)).to_numpy()[:, columns]
    controls = [cells.control_mean(name)[columns] for name in chosen]
    if not chosen:
        chosen = {name: cells.control_rows(name) for name in _one_of_each_control(cells, names)}
        controls = [cells.control_mean(name)[columns] for name in chosen]
        means = np.stack(controls)
    each = max(2, FRAME_CELLS // len(chosen))
    rows = [rng.permutation(found)[:each] for found in chosen.values()]
    values = in_memory(subset(cells.X, np.concatenate(rows), columns)).toarray().astype(np.float64)
    conditions = np.repeat(np.arange(len(rows)), [len(drawn) for drawn in rows])
    return Residual(values, conditions, means, np.stack(controls))


def _one_of_each_control(cells: CellTable, names: Sequence[str]) -> list[str]:
    """The first condition of each population of control cells."""
    return list({cells.control_rows(name).tobytes(): name for name in reversed(names)}.values())
