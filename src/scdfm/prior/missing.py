"""Mean shifts of genes that not every screen measured: what the conditions that measured a gene let expect of the others.

Under one process, filling in what is expected leaves every prediction as the measured shifts alone make it. The filled
shifts then count as measured, so that where many are missing the uncertainty is told too small.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scdfm.data.conditions import control_of
from scdfm.prior.effects import Descriptions
from scdfm.prior.kernel import Floats, every_target
from scdfm.prior.learn import learn_prior


def filled_shifts(
    conditions: Sequence[str],
    shifts: Floats,
    n_cells: npt.NDArray[np.float64],
    variances: Floats,
    genes: Sequence[str],
    features: Descriptions | None,
    controls: Floats,
) -> Floats:
    """`shifts` [n, G] with a number in the place of every NaN; the other arguments as of `learn_prior`.

    Genes missing in the same conditions are told together, by a prior of the other conditions and all their genes.
    """
    missing, filled = np.isnan(shifts), shifts.copy()
    names, of_genes = np.array(conditions), np.array(genes)
    for lacking in np.unique(missing, axis=1).T:
        if not lacking.any():
            continue
        rows, missing_rows = np.flatnonzero(~lacking), np.flatnonzero(lacking)
        columns = np.flatnonzero(~missing[rows].any(0))
        prior = learn_prior(
            names[rows].tolist(), shifts[np.ix_(rows, columns)], n_cells[rows].tolist(), variances[columns],
            of_genes[columns].tolist(), features, controls[np.ix_(rows, columns)],
        ).prior  # fmt: skip
        others = names[missing_rows].tolist()
        settings = {control_of(name): controls[row, columns] for name, row in zip(others, missing_rows, strict=True)}
        expected = prior.knowing(every_target(others), features, settings).predict(others)
        alike = (missing[:, columns] == lacking[:, None]).all(0)
        filled[np.ix_(missing_rows, columns[alike])] = expected[:, alike]
    return filled
