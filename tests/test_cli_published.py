"""The commands about the publication, end to end, with their refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import torch

from scdfm.datasets.generated import generated_norman
from scdfm.model import reference

Call = Callable[..., tuple[int, str, str]]


def test_reproduce_smoke_prints_the_table_and_says_where_it_is(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, told = call("reproduce", "norman-additive", "--smoke", "--out", out, "--set", "sampling.cells=4")
    assert code == 0, told
    assert "protocol check" in printed
    assert "| published | scDFM | 1.7043 |" in printed
    assert "| here | scdfm paper |" in printed
    assert printed.rstrip().endswith(f"table: {out / 'table.md'}")
    assert "[2/2] fold 0, scdfm paper, seed 0" in told
    code, _, told = call("reproduce", "norman-additive", "--smoke", "--out", out)
    assert (code, told.count("\n")) == (2, 1)
    assert "exists and is not empty" in told


def test_a_converted_checkpoint_predicts(call: Call, tmp_path: Path) -> None:
    screen = generated_norman()
    screen.write_h5ad(tmp_path / "norman.h5ad")
    tokens = ["<pad>", "<cls>", "<mask>", "control", *screen.var_names]
    (tmp_path / "vocab.json").write_text(json.dumps({name: place for place, name in enumerate(tokens)}))
    state = reference.random_state("differential_perceiver", n_tokens=len(tokens), width=16, n_heads=2, n_layers=1)
    torch.save({"iteration": 9, "model_state_dict": state}, tmp_path / "model.pt")
    code, printed, told = call(
        "convert-official", tmp_path / "model.pt", "--vocab", tmp_path / "vocab.json", "--data", tmp_path / "norman.h5ad",
        "--fold", 1, "--out", tmp_path / "run", "--set", "sampling.steps=2",
    )  # fmt: skip
    assert code == 0, told
    assert "93 tensors: 85 read, 8 that the official forward pass never reads" in printed
    assert "graph built from the training cells of split additive, fold 1" in printed
    assert printed.rstrip().endswith(f"run {tmp_path / 'run'}: 60 genes, 64 tokens")
    code, _, told = call("predict", tmp_path / "run", "--test", "--cells", 2, "--out", tmp_path / "p.h5ad", "--quiet")
    assert code == 0, told
    assert ad.read_h5ad(tmp_path / "p.h5ad").shape == (2 * 7, 60)
    code, _, told = call(
        "convert-official", tmp_path / "model.pt", "--vocab", tmp_path / "vocab.json", "--out", tmp_path / "none"
    )
    assert (code, told.count("\n")) == (2, 1)
    assert "expected the official mask (--graph MASK.pt) or the data (--data FILE)" in told
    code, _, told = call(
        "convert-official", tmp_path / "model.pt", "--vocab", tmp_path / "vocab.json", "--out", tmp_path / "none",
        "--perturbation", "smells",
    )  # fmt: skip
    assert (code, told) == (2, "error: --perturbation smells: expected genes or drugs\n")


def test_download_names_the_file_that_is_there(call: Call, tmp_path: Path) -> None:
    generated_norman().write_h5ad(tmp_path / "norman.h5ad")
    assert call("download", "norman", "--out", tmp_path) == (0, f"{tmp_path / 'norman.h5ad'}\n", "")
    code, _, told = call("download", "sciplex", "--out", tmp_path)
    known = "norman, combosciplex, go-annotations, go-ontology, gene-names, go"
    assert (code, told) == (2, f"error: data set 'sciplex': expected one of {known}\n")
