"""Screens that cannot be read: each gives one line that names the trouble and the remedy, and nothing else escapes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scdfm.data import CONTROL, CellTable, read_cells, simulate
from scdfm.errors import DataError, ScdfmError

LABELS = ["control", "A", "B", "A+B", "control", "A"]
GENES = ["G0", "G1", "G2", "G3"]


def adata(x: Any = None, labels: list[Any] | None = None, genes: list[str] | None = None) -> ad.AnnData:
    values = np.random.default_rng(0).random((6, 4)).astype(np.float32) if x is None else x
    obs = pd.DataFrame({"perturbation": labels or LABELS, "line": ["K562"] * 6}, index=[f"c{i}" for i in range(6)])
    return ad.AnnData(values, obs=obs, var=pd.DataFrame(index=genes or GENES))


def with_value(value: float, kind: type = np.float32) -> np.ndarray:
    x = np.full((6, 4), 0.5, dtype=kind)
    x[2, 3] = value
    return x


def no_x() -> ad.AnnData:
    made = adata()
    del made.X
    return made


def repeated_genes() -> ad.AnnData:
    made = adata()
    made.var_names = ["G0", "G1", "G1", "G1"]
    return made


def repeated_column() -> ad.AnnData:
    made = adata()
    made.obs.columns = ["perturbation", "perturbation"]
    return made


class Stranger:
    """Looks like an AnnData, but its X is a list."""

    obs = adata().obs
    var_names = adata().var_names
    layers: dict[str, Any] = {}  # noqa: RUF012
    X = [[1, 2, 3, 4]]  # noqa: RUF012


IN_MEMORY: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "no such column": (
        adata,
        {"perturbation_key": "perturbatoin"},
        r"column 'perturbatoin' is not in obs; its columns are perturbation, line; did you mean 'perturbation'",
    ),
    "no columns": (lambda: ad.AnnData(np.ones((2, 2)) / 2), {}, "its columns are none"),
    "column twice": (repeated_column, {}, "obs has 2 columns named 'perturbation', expected one"),
    "control label absent": (
        lambda: adata(labels=["A", "B", "A+B", "A", "A", "C"]),
        {"control": "NT"},
        r"no cell of obs column .* is labelled 'NT', .* most frequent are 'A', 'B', 'A\+B', 'C'",
    ),
    "control label misspelt": (
        lambda: adata(labels=["non-targeting", *"ABABA"]),
        {"control": "nontargeting"},
        "did you mean 'non-targeting'",
    ),
    "label missing": (
        lambda: adata(labels=["control", None, "A", np.nan, "B", "A"]),
        {},
        r"2 cells have no label in obs column 'perturbation' \(first: cell 'c1'\)",
    ),
    "label empty": (
        lambda: adata(labels=["control", "", "A", "A", "B", "A"]),
        {},
        "condition '': expected targets joined by",
    ),
    "label half": (
        lambda: adata(labels=["control", "A+", "A", "A", "B", "A"]),
        {},
        "condition 'A.': expected targets joined by '.', found an empty one; rename it",
    ),
    "label doubled": (lambda: adata(labels=["control", "A+A", "A", "A", "B", "A"]), {}, "names target 'A' twice"),
    "genes repeated": (
        repeated_genes,
        {},
        r"gene 'G1' occurs more than once in var \(2 repeats\); .*var_names_make_unique",
    ),
    "NaN": (
        lambda: adata(with_value(np.nan)),
        {},
        r"X: nan for gene 'G3' in cell 'c2' \(1 such values\); expected a finite number",
    ),
    "NaN, sparse": (lambda: adata(sp.csc_matrix(with_value(np.nan))), {}, "nan for gene 'G3' in cell 'c2'"),
    "infinite": (lambda: adata(with_value(np.inf)), {"target_sum": 1e4}, "inf for gene 'G3' in cell 'c2'"),
    "negative": (
        lambda: adata(with_value(-0.25)),
        {},
        "-0.25 for gene 'G3' in cell 'c2' .* expected no negative value",
    ),
    "negative counts": (lambda: adata(with_value(-2) * 2), {"target_sum": 1e4}, "-4 for gene 'G3'"),
    "beyond float32": (
        lambda: adata(with_value(1e300, np.float64)),
        {},
        "1e.300 for gene 'G3' .* expected log1p values of at most 20",
    ),
    "not logarithmic": (
        lambda: adata(with_value(21.5)),
        {},
        "21.5 for gene 'G3' .* pass target_sum .--target-sum 10000. for counts",
    ),
    "overflowed": (
        lambda: adata(np.full((6, 4), -1).astype(np.uint32)),
        {"target_sum": 1e4},
        r"4.29497e.09 for gene 'G0' .* at most 1e.09 counts: an integer overflowed",
    ),
    "counts as log1p": (
        lambda: adata(np.arange(24).reshape(6, 4)),
        {},
        "whole numbers only, these look like raw counts; .* pass target_sum",
    ),
    "log1p as counts": (
        lambda: adata(with_value(0.25)),
        {"target_sum": 1e4},
        r"0.5 for gene 'G0' in cell 'c0' \(24 such values\); expected raw counts",
    ),
    "all zero": (lambda: adata(np.zeros((6, 4))), {}, "holds only zeros"),
    "all zero, sparse counts": (lambda: adata(sp.csr_matrix((6, 4))), {"target_sum": 1e4}, "holds only zeros"),
    "no cells": (lambda: adata()[:0], {}, "holds no cells"),
    "no genes": (lambda: adata()[:, :0], {}, "holds no genes"),
    "no X": (no_x, {}, "AnnData has no X, no other layer"),
    "no such layer": (adata, {"layer": "counts"}, "no layer 'counts'; its layers are none"),
    "complex": (lambda: adata(np.full((6, 4), 1 + 1j)), {}, "values of type complex128; expected real numbers"),
    "texts": (lambda: adata(np.full((6, 4), "a", dtype=object)), {}, "values of type object; expected real numbers"),
    "a list for X": (Stranger, {}, "X is a list; expected a dense, CSR or CSC matrix"),
    "subset column": (adata, {"subset": {"cell": "K562"}}, "subset column 'cell' is not in obs"),
    "subset value": (
        adata,
        {"subset": {"line": "K652"}},
        "subset line=K652 matches no cell; values of 'line' are 'K562'; did you mean 'K562'",
    ),
    "subset of none": (
        adata,
        {"subset": {"line": "K562", "perturbation": "C"}},
        "subset perturbation=C matches no cell",
    ),
    "subset contradicts": (
        lambda: ad.concat([adata(), adata()], keys=["x", "y"], label="half", index_unique="_")[[0, 1, 8, 9]],
        {"subset": {"half": "x", "perturbation": "B"}},
        "no cell has all of the subset",
    ),
    "subset without control": (
        adata,
        {"subset": {"perturbation": "A"}},
        "no cell of obs column 'perturbation' is labelled 'control'",
    ),
    "target sum zero": (adata, {"target_sum": 0}, "target_sum 0: expected None, 'median' or a positive number"),
    "target sum infinite": (adata, {"target_sum": float("inf")}, "target_sum inf"),
    "target sum true": (adata, {"target_sum": True}, "target_sum True"),
    "target sum text": (adata, {"target_sum": "mean"}, "target_sum 'mean'"),
    "not an AnnData": (lambda: pd.DataFrame({"a": [1]}), {}, "expected a path or an AnnData, found a DataFrame"),
    "nothing": (lambda: None, {}, "found a NoneType"),
}


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(ScdfmError) as caught:
        read_cells(source, **options)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("case", IN_MEMORY)
def test_bad_in_memory(case: str) -> None:
    make, options, expected = IN_MEMORY[case]
    message = refusal(make(), **options)
    assert re.search(expected, message), message


@pytest.fixture
def good(tmp_path: Path) -> Path:
    adata(sp.csr_matrix(with_value(0.25))).write_h5ad(tmp_path / "good.h5ad")
    return tmp_path / "good.h5ad"


def delete(*names: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        for name in names:
            del file[name]

    return change


def replaced(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        attributes = dict(file[name].attrs)
        del file[name]
        file[name] = value
        file[name].attrs.update(attributes)

    return change


DAMAGE: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "no obs": (delete("obs"), "is not an AnnData file: it has no obs and var"),
    "no var": (delete("var"), "is not an AnnData file"),
    "no X": (delete("X"), "good.h5ad has no X, no other layer"),
    "no X data": (delete("X/data"), "cannot be read"),
    "no indptr": (delete("X/indptr"), "cannot be read"),
    "columns out of range": (replaced("X/indices", np.full(24, 99, dtype=np.int32)), "cannot be read"),
    "negative columns": (replaced("X/indices", np.full(24, -1, dtype=np.int32)), "cannot be read"),
    "short indptr": (replaced("X/indptr", np.array([0, 4], dtype=np.int32)), "cannot be read"),
    "wild indptr": (replaced("X/indptr", np.array([0, 4, 900, 12, 16, 20, 24], dtype=np.int32)), "cannot be read"),
    "no codes": (delete("obs/perturbation/codes"), "column .perturbation. of obs cannot be read"),
    "codes out of range": (
        replaced("obs/perturbation/codes", np.full(6, 9, dtype=np.int8)),
        "column .perturbation. of obs cannot be read",
    ),
    "codes missing": (replaced("obs/perturbation/codes", np.full(6, -1, dtype=np.int8)), "6 cells have no label"),
    "an encoding of the future": (
        lambda file: file["obs/perturbation"].attrs.update({"encoding-version": "9.9.9"}),
        "column .perturbation. of obs cannot be read .IORegistryError: .* You may need to update",
    ),
    "a column that is gone": (delete("obs/perturbation"), "column .perturbation. of obs cannot be read .KeyError"),
    "no names of cells": (delete("obs/_index"), "cannot be read as AnnData"),
    "other shape": (lambda file: file["X"].attrs.update({"shape": np.array([3, 4])}), "expected .6, 4."),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files(case: str, good: Path) -> None:
    change, expected = DAMAGE[case]
    made = ad.read_h5ad(good)
    made.obs["perturbation"] = made.obs["perturbation"].astype("category")
    made.write_h5ad(good)
    with h5py.File(good, "r+") as file:
        change(file)
    message = refusal(good)
    assert re.search(expected, message), message
    assert "good.h5ad" in message


def test_no_file_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.h5ad", str(tmp_path / "none.zarr"), "https://example.org/x.h5ad", "a\0b", "x" * 6000):
        assert "does not exist; expected an .h5ad file or a .zarr store" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"perturbation,G1\nA,1\n", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04zip"])
def test_other_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "other.h5ad").write_bytes(content)
    message = refusal(tmp_path / "other.h5ad")
    assert "is not an h5ad (HDF5) file" in message or "cannot be read as AnnData" in message


def test_another_hdf5_file_and_an_empty_folder(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "matrix.h5", "w") as file:
        file["matrix/data"] = np.arange(3)
    assert "is not an AnnData file: it has no obs and var" in refusal(tmp_path / "matrix.h5")
    (tmp_path / "empty.zarr").mkdir()
    assert "cannot be read as AnnData" in refusal(tmp_path / "empty.zarr")


def test_truncated_anywhere(good: Path) -> None:
    whole = good.read_bytes()
    for share in np.linspace(0.02, 0.98, 25):
        good.write_bytes(whole[: int(share * len(whole))])
        assert "good.h5ad" in refusal(good)


def test_scrambled_bytes_are_read_or_refused(tmp_path: Path) -> None:
    simulate(n_genes=12, n_targets=2, cells_per_condition=5, n_controls=5, truth_cells=1).write_h5ad(
        tmp_path / "s.h5ad"
    )
    whole = bytearray((tmp_path / "s.h5ad").read_bytes())
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(20):
        scrambled = whole.copy()
        start = int(rng.integers(0, len(whole) - 64))
        scrambled[start : start + 64] = rng.bytes(64)
        (tmp_path / "s.h5ad").write_bytes(scrambled)
        try:
            outcomes.add(type(read_cells(tmp_path / "s.h5ad")).__name__)
        except DataError:
            outcomes.add("refused")
    assert outcomes == {"CellTable", "refused"}


def test_zarr_pieces_missing(tmp_path: Path) -> None:
    with ad.settings.override(zarr_write_format=3), warnings.catch_warnings(action="ignore"):
        adata().write_zarr(tmp_path / "s.zarr")
    assert read_cells(tmp_path / "s.zarr").n == 6
    for file in sorted((tmp_path / "s.zarr" / "var").rglob("*")):
        if file.is_file():
            file.unlink()
    assert "s.zarr" in refusal(tmp_path / "s.zarr")


LABEL = st.one_of(
    st.sampled_from(["control", "ctrl", "A", "B", "A+B", "B+A", "A+ctrl", "C", "A+A", "", "+", "A+", " A", "a/b"]),
    st.text(max_size=6),
    st.none(),
    st.integers(-2, 2),
)
VALUE = st.one_of(
    st.integers(0, 9).map(float), st.floats(0, 9, width=32), st.sampled_from([np.nan, np.inf, -1.0, 1e30, 1e300, 25.0])
)
FORM = st.sampled_from(
    [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array, np.float16, np.float32, np.asfortranarray, np.int64]
)


@st.composite
def screens(draw: st.DrawFn) -> ad.AnnData:
    n, n_genes = draw(st.integers(0, 6)), draw(st.integers(0, 4))
    pool = draw(st.lists(VALUE, min_size=1, max_size=3 if draw(st.booleans()) else 1))
    x = np.array(draw(st.lists(st.sampled_from([0.0, *pool]), min_size=n * n_genes, max_size=n * n_genes)))
    with np.errstate(all="ignore"):
        x = draw(FORM)(x.reshape(n, n_genes))
    labels = draw(st.lists(LABEL, min_size=n, max_size=n))
    if draw(st.booleans()):
        labels = ["control", *labels[1:]] if n else labels
    obs = pd.DataFrame({"perturbation": pd.Series(labels, dtype=object)})
    obs.index = [f"c{i}" for i in range(n)]
    if draw(st.booleans()):
        obs["perturbation"] = obs["perturbation"].astype(str).astype("category")
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(n_genes)]))


def read_or_message(made: ad.AnnData, target_sum: Any) -> tuple[CellTable | None, str]:
    try:
        return read_cells(made, target_sum=target_sum), ""
    except ScdfmError as error:
        return None, str(error)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(screens(), st.sampled_from([None, 1e4, "median", 1.0]))
def test_any_screen_is_a_valid_table_or_refused_in_one_line(made: ad.AnnData, target_sum: Any) -> None:
    table, message = read_or_message(made, target_sum)
    if table is None:
        assert message
        assert "\n" not in message
        return
    assert table.X.shape == made.shape
    assert table.X.dtype == np.float32
    assert np.isfinite(table.X.data).all()
    assert (table.X.data > 0).all()
    table.X.check_format(full_check=True)
    assert table.conditions[0] == CONTROL
    assert list(table.conditions[1:]) == sorted(set(table.conditions[1:]))
    assert sum(table.n_cells(name) for name in table.conditions) == made.n_obs
    assert set(table.spelling) == set(table.conditions)
    np.testing.assert_allclose(table.means().to_numpy().mean(axis=1) >= 0, True)
