"""The five-minute tour: a simulated screen with interacting doubles, fitted, predicted, scored, reported."""

from __future__ import annotations

import shutil
from pathlib import Path

from scdfm.config import Config
from scdfm.data import read_cells, simulate
from scdfm.errors import DataError
from scdfm.files import new_folder, write_h5ad
from scdfm.report import Evaluation, evaluate_files
from scdfm.training import fit

SCREEN, RUN, PREDICTED, REPORT = "screen.h5ad", "run", "predicted.h5ad", "report"


def run_demo(out: str | Path, *, seed: int = 0, overwrite: bool = False, progress: bool = True) -> Evaluation:
    """Simulate a screen into `out`, fit the preset `tiny`, predict the test doubles, write the report.

    overwrite: replace an earlier demo in `out`; a folder that holds anything else is refused.
    """
    out = Path(out)
    if overwrite and out.is_dir():
        strange = {path.name for path in out.iterdir()} - {SCREEN, RUN, PREDICTED, REPORT}
        if strange:
            raise DataError(
                f"output folder {out} holds {sorted(strange)[0]}, which no demo wrote; choose another --out"
            )
        shutil.rmtree(out)
    new_folder(out)
    write_h5ad(out / SCREEN, simulate(n_genes=120, n_targets=10, seed=seed))
    cells = read_cells(out / SCREEN)
    run = fit(cells, config=Config.preset("tiny").updated({"seed": seed}), out=out / RUN, progress=progress)
    predicted = run.predict(seed=seed, progress=progress)
    write_h5ad(out / PREDICTED, predicted)
    command = {"command": f"scdfm demo --out {out} --seed {seed}"}
    return evaluate_files(predicted, cells, out / REPORT, training=run, name="scdfm", provenance=command, seed=seed)
