"""Counts are read as they are, and nothing else is taken for counts."""

from __future__ import annotations

import numpy as np
import pytest

from scdfm.data import read_cells
from scdfm.errors import ConfigError, DataError
from scdfm.evaluation import evaluate, read_counts


def test_conditions_and_their_order(real):
    cells = real.copy()
    cells.obs["perturbation"] = (
        cells.obs["perturbation"]
        .astype("category")
        .cat.reorder_categories(sorted(set(cells.obs["perturbation"]), reverse=True))
    )
    found, plain = read_counts(cells), read_counts(real)
    assert found.order == tuple(reversed(plain.order))
    assert found.conditions == plain.conditions == tuple(sorted(set(real.obs["perturbation"]) - {"control"}))
    assert (found.X != real.X).nnz == 0
    assert np.array_equal(found.rows["G003"], np.flatnonzero(real.obs["perturbation"] == "G003"))
    few = read_counts(real, subset={"perturbation": "control"}, need_control=False)
    assert few.conditions == ()
    assert few.X.shape[0] == 60


def test_what_is_no_count_is_refused_in_one_line(real):
    cells = real.copy()
    cells.X = np.log1p(cells.X.toarray())
    with pytest.raises(DataError, match=r"X: 0\.69.* raw counts .*--layer"):
        read_counts(cells)
    cells.X = -real.X.toarray()
    with pytest.raises(DataError, match="no negative value"):
        read_counts(cells)
    cells.X = real.X.toarray() * 100_000
    with pytest.raises(DataError, match="at most 1e\\+06 a cell"):
        read_counts(cells)
    cells.layers["counts"] = real.X
    assert (read_counts(cells, layer="counts").X != real.X).nnz == 0


def test_each_protocol_refuses_the_values_of_the_other(real, predicted):
    with pytest.raises(DataError, match="look like raw counts"):
        evaluate(predicted, real)
    with pytest.raises(ConfigError, match="CellTable holds log1p values"):
        evaluate(predicted, read_cells(real, target_sum=1e4), protocol="vcc2026")
    with pytest.raises(ConfigError, match="read_counts goes with protocol vcc2026"):
        evaluate(read_counts(predicted, need_control=False), real)
    with pytest.raises(ConfigError, match="layer is no option of protocol scdfm"):
        evaluate(predicted, real, layer="counts")
    for option in ({"genes": 10}, {"check_scale": False}, {"release": "0.8.2"}, {"backed": True}):
        with pytest.raises(ConfigError, match=f"{next(iter(option))} is no option of protocol vcc2026"):
            evaluate(predicted, real, protocol="vcc2026", **option)
