"""A run: a trained model, and what it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scdfm.data import CellTable
from scdfm.run import predict, shards
from scdfm.run.controls import read_controls
from scdfm.run.trained import Trained

if TYPE_CHECKING:
    from anndata import AnnData


class Run(Trained):
    """A trained model with its provenance, read from a run folder by `Run.load(path)`, and its predictions.

    What ranks and identifies perturbations with it stands above: `scdfm.screen(run)`, `scdfm.identify(run)`.
    """

    predict = predict.predict
    predict_to = shards.predict_to

    def read_controls(
        self, controls: AnnData | str | Path, context: Mapping[str, str] | None = None, **options: Any
    ) -> CellTable:
        """Control cells of a file, to be given to `predict`; context: the covariates of all of them.

        options: those of `read_cells` (perturbation_key, control, target_sum, ...) where the file was not written as the
        one that was trained on. Raises DataError where its cells are not on the run's scale.
        """
        return predict.control_table(self, read_controls(controls, self.manifest, options, context=context))
