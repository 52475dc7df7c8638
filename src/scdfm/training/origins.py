"""The prior and the frame of a fit: learned from training conditions alone, once, before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scdfm.data import CONTROL, CellTable, Split
from scdfm.data.sampler import population
from scdfm.data.stored import in_memory, subset
from scdfm.flow import Frame
from scdfm.prior import LearnedPrior, Origins, fit_frame, learn_prior
from scdfm.prior.kernel import every_target
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
    conditions alone let expect.
    """
    if (out / CHECKPOINTS / ORIGINS).is_file():
        return
    (out / CHECKPOINTS).mkdir(exist_ok=True)
    learned = _learned(cells, split.train, inputs)
    frame = _frame(cells, split.train, inputs)
    folder.write_frame(out / folder.FRAME, frame)
    known = learned
    if split.validation:
        known = _learned(cells, (*split.train, *split.validation), inputs)
    known.prior.save(out / folder.PRIOR)
    origins = _origins(cells, split, inputs, learned, frame)
    folder.write_tensors(out / CHECKPOINTS / ORIGINS, {"centre": origins.centre, "shift": origins.shift})


def read_origins(split: Split, inputs: Inputs, out: Path) -> Origins:
    """The origins that `write_origins` left in the run folder."""
    tensors = folder.read_tensors(out / CHECKPOINTS / ORIGINS)
    names = (*split.train, *split.validation, *inputs.manifest.control_populations)
    frame = folder.read_frame(out / folder.FRAME, len(inputs.panel.genes))
    return Origins(frame, names, tensors["centre"], tensors["shift"])


def _learned(cells: CellTable, names: Sequence[str], inputs: Inputs) -> LearnedPrior:
    columns = cells.columns(inputs.panel.genes)
    controls = np.stack([cells.control_mean(name)[columns] for name in names])
    shifts = cells.means(names).to_numpy()[:, columns] - controls
    counts = [cells.n_cells(name) for name in names]
    return learn_prior(names, shifts, counts, inputs.panel.genes, inputs.encoder.descriptions)


def _origins(cells: CellTable, split: Split, inputs: Inputs, learned: LearnedPrior, frame: Frame) -> Origins:
    """Training, validation and control conditions at the means expected of them."""
    options, columns = inputs.manifest.config.flow, cells.columns(inputs.panel.genes)
    own = learned.left_out if options.prior_means == "leave_one_out" else learned.prior.predict(split.train)
    shifts = dict(zip(split.train, own, strict=True))
    validated = learned.prior.knowing(every_target(split.validation), inputs.encoder.descriptions)
    shifts |= dict(zip(split.validation, validated.predict(split.validation), strict=True))
    controls = {name: cells.control_mean(name)[columns] for name in shifts}
    for name in inputs.manifest.control_populations:
        rows = population(cells, name)
        controls[name] = cells.take(rows).mean(CONTROL)[columns]
        shifts[name] = np.zeros(len(columns))
    return Origins.around(frame, controls, shifts)


def _frame(cells: CellTable, names: Sequence[str], inputs: Inputs) -> Frame:
    """The frame of training cells, as many of each condition as come to FRAME_CELLS, drawn by the config's seed."""
    rng = numpy_rng(inputs.manifest.seed, "frame")
    columns = cells.columns(inputs.panel.genes)
    each = max(2, FRAME_CELLS // len(names))
    rows = [rng.permutation(cells.rows(name))[:each] for name in names]
    kept = [place for place, drawn in enumerate(rows) if len(drawn) > 1] or list(range(len(rows)))
    means = cells.means([names[place] for place in kept]).to_numpy()[:, columns]
    controls = np.stack([cells.control_mean(names[place])[columns] for place in kept])
    conditions = np.repeat(np.arange(len(kept)), [len(rows[place]) for place in kept])
    drawn = in_memory(subset(cells.X, np.concatenate([rows[place] for place in kept]), columns))
    return fit_frame(
        drawn.toarray().astype(np.float64),
        conditions,
        means,
        controls,
        torch_rng(inputs.manifest.seed, "zeros"),
    )
