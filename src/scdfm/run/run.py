"""A run: a trained model, and what it predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scdfm.data import CellTable
from scdfm.run.controls import read_controls
from scdfm.run.predict import control_table, predict
from scdfm.run.shards import PredictedFile, predict_to
from scdfm.run.trained import Trained

if TYPE_CHECKING:
    from anndata import AnnData


class Run(Trained):
    """A trained model with its provenance, read from a run folder by `Run.load(path)`, and its predictions.

    What ranks and identifies perturbations with it stands above: `scdfm.screen(run)`, `scdfm.identify(run)`.
    """

    def read_controls(
        self, controls: AnnData | str | Path, context: Mapping[str, str] | None = None, **options: Any
    ) -> CellTable:
        """Control cells of a file, to be given to `predict`; context: the covariates of all of them.

        options: those of `read_cells` (perturbation_key, control, target_sum, ...) where the file was not written as the
        one that was trained on. Raises DataError where its cells are not on the run's scale.
        """
        return control_table(self, read_controls(controls, self.manifest, options, context=context))

    def predict(
        self,
        conditions: Sequence[str] | None = None,
        controls: CellTable | AnnData | str | Path | None = None,
        n_cells: int | None = None,
        genes: Sequence[str] | None = None,
        seed: int = 0,
        progress: bool = False,
        counts: bool = False,
        context: Mapping[str, str] | None = None,
        fill_genes: bool = False,
        device: str = "auto",
    ) -> AnnData:
        """Generate a population for each of `conditions` (None: the test conditions of the run's split).

        Returns AnnData of the panel's genes (or of `genes`) in log1p at the run's scale, or whole counts; see
        `scdfm.run.predict.predict`.
        """
        return predict(
            self,
            conditions,
            controls,
            n_cells=n_cells,
            genes=genes,
            counts=counts,
            seed=seed,
            progress=progress,
            context=context,
            fill_genes=fill_genes,
            device=device,
        )

    def predict_to(
        self,
        out: str | Path,
        conditions: Sequence[str] | None = None,
        controls: CellTable | AnnData | str | Path | None = None,
        n_cells: int | None = None,
        genes: Sequence[str] | None = None,
        seed: int = 0,
        resume: bool = False,
        overwrite: bool = False,
        progress: bool = False,
        counts: bool = False,
        context: Mapping[str, str] | None = None,
        fill_genes: bool = False,
        device: str = "auto",
        say: Callable[[str], object] | None = None,
    ) -> PredictedFile:
        """Write the populations of `predict` to `out` (.h5ad or .zarr) as they come, so that thousands of conditions fit
        in memory and an interrupted prediction goes on with `resume`; `say` is told the time it will take; see
        `scdfm.run.shards.predict_to`.
        """
        return predict_to(
            self, out, conditions, controls, n_cells=n_cells, genes=genes, seed=seed, resume=resume,
            overwrite=overwrite, progress=progress, counts=counts, context=context, fill_genes=fill_genes, device=device,
            say=say,
        )  # fmt: skip
