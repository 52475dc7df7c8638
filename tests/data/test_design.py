"""Covariates, doses, times and matched controls: the names they give, the controls they choose, every refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scdfm.data import CONTROL, CellTable, Design, covariates, doses, read_cells, targets
from scdfm.errors import ConditionError, DataError

# Two lines and two batches; the dose and time of control cells are unknown.
OBS = pd.DataFrame(
    {
        "perturbation": ["NT", "NT", "NT", "NT", "A", "A", "B+A", "A+NT", "A", "A"],
        "line": ["K562", "K562", "RPE1", "RPE1", "K562", "K562", "RPE1", "RPE1", "RPE1", "K562"],
        "dose": [np.nan, 0, np.nan, np.nan, 1, 1, 0.1, 1, 10, 1],
        "hours": [np.nan, np.nan, np.nan, np.nan, 24, 24, 6, 6, 24, 24],
        "batch": [1, 2, 1, 2, 1, 2, 1, 2, 2, 1],
    }
)


def screen(**columns: Any) -> ad.AnnData:
    obs = OBS.assign(**columns)
    obs.index = pd.Index([f"c{i}" for i in range(len(obs))])
    x = np.random.default_rng(0).random((len(obs), 3)).astype(np.float32)
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=["A", "B", "G"]))


def read(**options: Any) -> CellTable:
    columns = {key: options.pop(key) for key in ("line", "dose", "hours", "batch", "perturbation") if key in options}
    return read_cells(screen(**columns), control="NT", **options)


@pytest.fixture(scope="module")
def cells() -> CellTable:
    return read(covariates=["line"], dose_key="dose", time_key="hours")


def test_names_hold_covariates_doses_and_time(cells: CellTable) -> None:
    assert cells.conditions == (
        CONTROL,
        "A@0.1+B@0.1|line=RPE1|time=6",
        "A@10|line=RPE1|time=24",
        "A@1|line=K562|time=24",
        "A@1|line=RPE1|time=6",
    )
    assert cells.rows(CONTROL).tolist() == [0, 1, 2, 3]
    assert cells.rows("A@1|line=K562|time=24").tolist() == [4, 5, 9]
    assert cells.covariates == ("line",)
    assert cells.spelling["A@0.1+B@0.1|line=RPE1|time=6"] == "B+A"
    assert cells.spelling["A@1|line=RPE1|time=6"] == "A+NT"
    assert cells.obs["perturbation"].tolist()[:5] == [*[CONTROL] * 4, "A@1|line=K562|time=24"]
    assert read(covariates=["line"]).conditions == (CONTROL, "A+B|line=RPE1", "A|line=K562", "A|line=RPE1")
    assert read(dose_key="dose").conditions == (CONTROL, "A@0.1+B@0.1", "A@1", "A@10")


def test_controls_are_those_of_the_covariates(cells: CellTable) -> None:
    assert cells.control_rows("A@1|line=K562|time=24").tolist() == [0, 1]
    assert cells.control_rows("A@10|line=RPE1|time=24").tolist() == [2, 3]
    assert cells.control_rows("Q@3|line=RPE1").tolist() == [2, 3]
    assert cells.control_rows("control|line=K562").tolist() == [0, 1]
    assert cells.control_rows(CONTROL).tolist() == [0, 1, 2, 3]
    assert cells.control_conditions == ("control|line=K562", "control|line=RPE1")
    dense = cells.X.toarray().astype(np.float64)
    for name, rows in (("Q|line=RPE1", [2, 3]), ("A@1|line=K562|time=24", [0, 1]), (CONTROL, [0, 1, 2, 3])):
        np.testing.assert_allclose(cells.control_mean(name), dense[rows].mean(axis=0), rtol=1e-12)


def test_without_covariates_every_control_is_shared() -> None:
    cells = read()
    assert cells.control_rows("A").tolist() == [0, 1, 2, 3]
    assert cells.control_rows("Q|what=ever").tolist() == [0, 1, 2, 3]
    assert (cells.covariates, cells.control_conditions) == ((), (CONTROL,))
    assert not cells.match.any()


def test_controls_are_matched_by_further_columns() -> None:
    cells = read(covariates=["line"], match_controls=["line", "batch"])
    assert cells.control_rows("A|line=RPE1").tolist() == [3]
    assert cells.control_rows("A|line=K562").tolist() == [0, 1]
    assert cells.control_rows("A+B|line=RPE1").tolist() == [2]
    assert cells.control_rows("Q|line=RPE1").tolist() == [2, 3]
    assert len(np.unique(cells.match)) == 4
    unmatched = read(covariates=["line"], match_controls=[])
    assert unmatched.control_rows("A|line=RPE1").tolist() == [0, 1, 2, 3]
    batches = read(match_controls=["batch"])
    assert batches.control_rows("A+B").tolist() == [0, 2]
    assert batches.control_rows("Q").tolist() == [0, 1, 2, 3]


def test_a_group_without_controls_is_named_or_falls_back() -> None:
    lines = ["K562"] * 4 + ["K562", "K562", "RPE1", "RPE1", "RPE1", "K562"]
    with pytest.raises(DataError) as caught:
        read(line=lines, covariates=["line"])
    assert str(caught.value) == (
        "AnnData: 3 perturbed cells of line=RPE1 have no control cells of their own; control cells exist for "
        'line=K562: match controls by other columns (match_controls), or take all of them (control_fallback="all")'
    )
    three = [*lines[:8], "HeLa", "K562"]
    with pytest.raises(DataError, match=r": 2 perturbed cells of line=RPE1 have .* \(nor have those of 1 further"):
        read(line=three, covariates=["line"])
    cells = read(line=lines, covariates=["line"], control_fallback="all")
    assert cells.control_rows("A|line=RPE1").tolist() == [0, 1, 2, 3]
    assert cells.control_rows("Q|line=NEW").tolist() == [0, 1, 2, 3]
    assert cells.control_conditions == ("control|line=K562",)
    # A line whose perturbed cells were left out needs no controls.
    few = read(line=["K562"] * 4 + ["K562"] * 5 + ["RPE1"], covariates=["line"], min_cells=2, perturbation=[
        *["NT"] * 4, "A", "A", "A", "A", "A", "B"])  # fmt: skip
    assert few.conditions == (CONTROL, "A|line=K562")


def test_names_without_their_covariates_are_told(cells: CellTable) -> None:
    with pytest.raises(
        ConditionError, match=r"holds the covariates none; expected line: write it as 'control.line=K562'"
    ):
        cells.control_rows("Q")
    with pytest.raises(ConditionError, match="holds the covariates batch; expected line"):
        cells.control_rows("Q|batch=1")
    with pytest.raises(ConditionError, match=r"condition 'Q.line=HeLa' has no control cells of its own; .*'all'"):
        cells.control_rows("Q|line=HeLa")


def test_selections_keep_their_groups(cells: CellTable) -> None:
    some = cells.take([9, 8, 3, 1, 0])
    assert some.control_rows("A@1|line=K562|time=24").tolist() == [3, 4]
    assert some.control_rows("A@10|line=RPE1|time=24").tolist() == [2]
    chosen = cells.select([CONTROL, "A@10|line=RPE1|time=24"])
    assert chosen.control_rows("A@10|line=RPE1|time=24").tolist() == [2, 3]
    np.testing.assert_array_equal(chosen.control_mean("Q|line=K562"), cells.control_mean("Q|line=K562"))


def test_a_written_table_reads_back(cells: CellTable, tmp_path: Path) -> None:
    cells.to_adata().write_h5ad(tmp_path / "again.h5ad")
    again = read_cells(tmp_path / "again.h5ad", covariates=["line"], dose_key="dose", time_key="hours")
    assert again.digest() == cells.digest()
    assert again.control_rows("Q|line=RPE1").tolist() == [2, 3]


def test_labels_alone_may_hold_the_covariates() -> None:
    labels = ["control|line=K562", "ctrl|line=RPE1", "NT|line=K562", *["A@1|line=K562"] * 6, "A|line=RPE1"]
    adata = screen(perturbation=labels)
    del adata.obs["line"]
    cells = read_cells(adata, control="NT", covariates=["line"])
    assert cells.conditions == (CONTROL, "A@1|line=K562", "A|line=RPE1")
    assert cells.control_rows("A|line=RPE1").tolist() == [1]
    assert cells.obs["line"].tolist()[:3] == ["K562", "RPE1", "K562"]
    with pytest.raises(DataError, match="control label 'NT.line=K562' holds covariate 'line', which is not declared"):
        read_cells(screen(perturbation=[labels[2], "NT", *labels[3:], "A"]), control="NT")


def test_digest_follows_the_matched_groups(cells: CellTable) -> None:
    plain = read()
    assert plain.digest() == read(match_controls=()).digest()
    grouped = read(match_controls=["batch"])
    assert grouped.digest() != plain.digest()
    assert grouped.digest() == read(batch=[7, 9, 7, 9, 7, 9, 7, 9, 9, 7], match_controls=["batch"]).digest()
    assert grouped.digest() != read(batch=[2, 2, 1, 2, 1, 2, 1, 2, 2, 1], match_controls=["batch"]).digest()


@pytest.mark.parametrize(
    ("dose", "names"),
    [
        (["-", "", None, "x", "1", "1", "2+0.5", "1", "1", "1"], {"A@0.5+B@2", "A@1"}),
        (["0"] * 4 + ["1", "1", "3", "1+0", "1", "1e+06"], {"A@3+B@3", "A@1", "A@1000000"}),
        (pd.Categorical([0, 0, 0, 0, 1, 1, 1, 1, 1, 1]), {"A@1+B@1", "A@1"}),
        (np.array([0.1] * 10, dtype=np.float32), {"A@0.1+B@0.1", "A@0.1"}),
        (np.array([0] * 10), {"A@0+B@0", "A@0"}),
    ],
)
def test_doses_are_numbers_or_one_per_target_in_the_order_of_the_label(dose: Any, names: set[str]) -> None:
    assert set(read(dose=dose, dose_key="dose").conditions) == {CONTROL, *names}


DOSES = ["0"] * 4 + ["1"] * 6
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such covariate": (
        {"covariates": ["lime"]},
        r"covariate column 'lime' is not in obs; its columns are .*; did you mean 'line'",
    ),
    "no such dose column": ({"dose_key": "dos"}, "dose column 'dos' is not in obs; .* did you mean 'dose'"),
    "no such time column": ({"time_key": "hour"}, "time column 'hour' is not in obs; .* did you mean 'hours'"),
    "no such match column": ({"match_controls": ["bach"]}, "match_controls column 'bach' is not in obs"),
    "perturbation as covariate": ({"covariates": ["perturbation"]}, "covariate column 'perturbation' is the pert"),
    "time as covariate": ({"covariates": ["time"]}, "covariate column 'time': .* give it with time_key='time'"),
    "odd key": ({"covariates": ["a|b"]}, r"covariate column 'a.b': expected a name that starts with a letter"),
    "covariate twice": ({"covariates": ["line", "line"]}, "covariates: column 'line' is named twice"),
    "fallback": ({"control_fallback": "some"}, "control_fallback 'some': expected error or all"),
    "bar in a value": (
        {"covariates": ["line"], "line": ["a|b"] * 10},
        "value 'a.b' of covariate column 'line' .cell 'c4'. holds",
    ),
    "missing covariate": (
        {"covariates": ["line"], "line": ["K562"] * 8 + [None, "K562"]},
        "perturbed cell 'c8' has no value in covariate column 'line'; expected one",
    ),
    "blank covariate": (
        {"covariates": ["line"], "line": ["K562"] * 8 + [" ", "K562"]},
        "perturbed cell 'c8' has no value in covariate column 'line'",
    ),
    "missing batch": (
        {"match_controls": ["batch"], "batch": [1.0] * 8 + [np.nan, 1.0]},
        "1 perturbed cells have no value in match_controls column 'batch' .first: cell 'c8'.",
    ),
    "missing dose": (
        {"dose_key": "dose", "dose": [*DOSES[:9], None]},
        "perturbed cell 'c9' has no value in dose column 'dose'",
    ),
    "not a dose": (
        {"dose_key": "dose", "dose": [*DOSES[:9], "high"]},
        r"dose 'high' in obs column 'dose' \(cell 'c9'\); expected a number of at least 0",
    ),
    "negative dose": ({"dose_key": "dose", "dose": [1.0] * 9 + [-1.0]}, r"dose '-1' in obs column 'dose'"),
    "infinite dose": ({"dose_key": "dose", "dose": [1.0] * 9 + [np.inf]}, r"dose 'inf' in obs column 'dose'"),
    "doses for other targets": (
        {"dose_key": "dose", "dose": [*DOSES[:6], "1+2+3", *DOSES[:3]]},
        r"dose '1\+2\+3' .* holds 3 numbers for label 'B\+A' \(cell 'c6'\) of 2 targets; expected one, or one per",
    ),
    "not a time": ({"time_key": "hours", "hours": ["day"] * 10}, "time 'day' in obs column 'hours' .cell 'c4'."),
    "label and dose differ": (
        {"dose_key": "dose", "dose": DOSES, "perturbation": [*["NT"] * 4, *["A@2"] * 6]},
        "cell 'c4' has label 'A@2', but dose '1' in obs; expected both to agree",
    ),
    "label and covariate differ": (
        {"covariates": ["line"], "perturbation": [*["NT"] * 4, *["A|line=HeLa"] * 6]},
        "cell 'c4' has label 'A.line=HeLa', but line 'K562' in obs",
    ),
    "label and time differ": (
        {"time_key": "hours", "perturbation": [*["NT"] * 4, *["A|time=3"] * 6]},
        "has label 'A.time=3', but time '24' in obs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        read(**options)


def test_a_design_is_json() -> None:
    design = Design(("line",), "dose", "hours", ("line", "batch"), "all")
    assert Design(**design.to_dict()) == design
    assert Design(**Design().to_dict()) == Design()
    assert Design("line").covariates == ("line",)  # type: ignore[arg-type]


def test_real_cell_types_and_lines(shared: Path) -> None:
    kang = read_cells(
        shared / "data" / "kang_pbmc.h5ad", "group_id", "ctrl", target_sum="median", covariates=["cluster_id"]
    )
    assert len(kang.conditions) == 6
    assert "stim|cluster_id=CD14+ Monocytes" in kang.conditions
    rows = kang.control_rows("stim|cluster_id=CD14+ Monocytes")
    assert set(kang.obs["cluster_id"].iloc[rows]) == {"CD14+ Monocytes"}
    assert kang.n_cells(CONTROL) == sum(len(kang.control_rows(name)) for name in kang.control_conditions) == 750
    lines = read_cells(
        shared / "data" / "perturbench_devel.h5ad", subset={"dataset": "mcfaline23"}, covariates=["cell_type"]
    )
    assert len(lines.conditions) == 1 + 3 * 9
    path, options = shared / "data" / "sciplex3.h5ad", {"dose_key": "dose", "covariates": ["cell_type"]}
    with pytest.raises(DataError, match="749 perturbed cells of cell_type=K562 have no control cells of their own"):
        read_cells(path, "product_name", **options)
    sciplex = read_cells(path, "product_name", control_fallback="all", **options)
    assert sciplex.n_cells(CONTROL) >= 3
    assert targets("(+)-JQ1@10000|cell_type=A549") == ("(+)-JQ1",)
    assert all(doses(name)[0] in (0, 10, 100, 1000, 10000) for name in sciplex.conditions[1:])
    assert {covariates(name)["cell_type"] for name in sciplex.conditions[1:]} == {"A549", "K562", "MCF7"}


def test_control_cells_alone_know_the_groups_of_conditions_that_lie_elsewhere() -> None:
    """Told of the groups, they answer as the whole table does; where not, as for a condition that nobody measured."""
    whole = read(covariates=["line"], match_controls=["line", "batch"])
    groups = whole.groups()
    assert set(groups) == set(whole.conditions) - {CONTROL}
    assert all(sum(of.values()) == whole.n_cells(name) for name, of in groups.items())
    alone = whole.select([CONTROL])
    told = alone.with_groups(groups)
    for name in groups:
        np.testing.assert_array_equal(told.control_rows(name), whole.control_rows(name))
        np.testing.assert_allclose(told.control_mean(name), whole.control_mean(name), rtol=1e-6)
        shares, expected = told.control_shares(name), whole.control_shares(name)
        assert (shares is None) == (expected is None)
        assert shares is None or np.allclose(shares, expected)
    np.testing.assert_array_equal(told.control_rows("Q|line=RPE1"), alone.control_rows("Q|line=RPE1"))
    assert any(len(alone.control_rows(name)) > len(whole.control_rows(name)) for name in groups)
    # A group without control cells here is left out, and covariates alone need no telling.
    few = whole.take(whole.control_rows("A|line=K562")).with_groups(groups)
    assert few.elsewhere.keys() < groups.keys()
    assert read(covariates=["line"]).groups() == {}
