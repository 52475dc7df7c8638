"""`scdfm inspect`: what it prints, and that the line it proposes runs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

import scdfm
from scdfm.data import simulate_drugs

FEW_STEPS = [
    "--set", "training.max_steps=2", "--set", "training.validate_every=2", "--set", "training.validation_cells=2",
    "--set", "panel.n_genes=60", "--set", "graph.k=5", "--set", "model.width=16", "--set", "model.layers=1",
    "--set", "training.cells_per_condition=2", "--set", "training.accelerator=cpu", "--set", "sampling.steps=1",
    "--quiet",
]  # fmt: skip


def proposed(call, path: Path) -> list[str]:
    """The words behind `scdfm` of the line that is printed at the end, the same in the JSON."""
    code, out, error = call("inspect", path)
    assert (code, error) == (0, "")
    line = shlex.split(out.splitlines()[-1])
    code, printed, _ = call("inspect", path, "--json")
    assert code == 0
    assert json.loads(printed)["command"] == line
    assert line[:3] == ["scdfm", "fit", str(path)]
    return line[1:]


def runs(call, path: Path, folder: Path) -> scdfm.Run:
    """The run of the proposed line, with a few small steps."""
    words = proposed(call, path)
    words[words.index("--out") + 1] = str(folder / "run")
    code, _, error = call(*words, *FEW_STEPS)
    assert code == 0, error  # what cannot be predicted is said, also with --quiet
    return scdfm.Run.load(folder / "run")


@pytest.mark.parametrize("kind", ["combinations", "doses", "cell-types"])
def test_the_line_for_a_simulated_screen_runs(call, tmp_path, kind) -> None:
    path = tmp_path / "a screen.h5ad"
    call("simulate", path, "--kind", kind, "--genes", 30, "--targets", 6, "--cells", 20, "--controls", 40)
    run = runs(call, path, tmp_path)
    assert run.split.test


@pytest.mark.parametrize("name", ["perturbench_devel", "kang_pbmc", "sciplex3"])
def test_the_line_for_real_cells_runs(call, shared, tmp_path, name) -> None:
    run = runs(call, shared / "data" / f"{name}.h5ad", tmp_path)
    assert run.split.test


def test_the_line_for_drugs_with_smiles_runs(call, tmp_path) -> None:
    adata = simulate_drugs(n_genes=30, n_drugs=6, cells_per_condition=8, n_controls=20, truth_cells=2)
    drugs = sorted(set(adata.obs["drug"]) - {"control"})
    adata.obs["SMILES"] = (
        adata.obs["drug"]
        .astype(str)
        .map({"control": "CS(C)=O"} | {name: "C" * (place + 2) + "O" for place, name in enumerate(drugs)})
    )
    adata.write_h5ad(tmp_path / "drugs.h5ad")
    run = runs(call, tmp_path / "drugs.h5ad", tmp_path)
    assert run.manifest.features is not None
    (held,) = run.split.test
    # Never in training, and predicted from its fingerprint.
    assert run.predict([held], n_cells=3).uns["scdfm"]["extrapolated"] == [held]


def test_what_cannot_be_inspected_is_one_line(call, tmp_path) -> None:
    (tmp_path / "notes.h5ad").write_text("no cells")
    code, _, error = call("inspect", tmp_path / "notes.h5ad")
    assert code == 2
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
