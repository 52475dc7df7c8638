"""Official checkpoints become runs that predict; what can't be read is told in one line, and nothing is run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scdfm
from scdfm.data import CellTable, Split, coexpression_graph, read_cells
from scdfm.errors import ConditionError, ConfigError, DataError, RunError
from scdfm.model import reference
from scdfm.official import convert

SPECIAL = ["<pad>", "<cls>", "<mask>", "control"]
SIZES = {"n_tokens": 40, "width": 16, "n_heads": 2, "n_layers": 4}
GENES = [f"G{number:02d}" for number in range(30)]


def save(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """A checkpoint as the official code saves it."""
    checkpoint = {
        "iteration": 1234,
        "model_state_dict": state,
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 5e-5}]},
        "scheduler_state_dict": {"T_max": 100000, "base_lrs": [5e-5], "last_epoch": 1234},
        "eval_score": None,
    }
    torch.save(checkpoint, path)
    return path


def save_vocabulary(path: Path, genes: list[str]) -> Path:
    path.write_text(json.dumps({name: place for place, name in enumerate([*SPECIAL, *genes])}))
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Checkpoint, vocabulary and mask of a small model whose table has more rows than the vocabulary."""
    mask = torch.rand(34, 34, generator=torch.Generator().manual_seed(1)) < 0.7
    mask.fill_diagonal_(False)
    torch.save(mask, tmp_path / "mask.pt")
    return {
        "checkpoint": save(tmp_path / "model.pt", reference.random_state("differential_perceiver", **SIZES)),
        "vocab": save_vocabulary(tmp_path / "vocab.json", GENES),
        "graph": tmp_path / "mask.pt",
    }


@pytest.fixture(scope="module")
def cells() -> CellTable:
    """Cells with the genes of the vocabulary, in another order, and one more."""
    rng = np.random.default_rng(5)
    names = list(rng.permutation([*GENES, "other"]))
    labels = np.repeat(["ctrl", "G01+ctrl", "G02+ctrl", "G01+G02", "G03+G04"], 8)
    obs = pd.DataFrame({"condition": labels}, index=[f"c{row}" for row in range(len(labels))])
    x = rng.gamma(1.0, 1.0, (len(labels), len(names))).astype(np.float32)
    return read_cells(ad.AnnData(x, obs=obs, var=pd.DataFrame(index=names)), "condition", "ctrl")


@pytest.fixture(scope="module")
def split() -> Split:
    return Split("additive", 0, ("G01", "G02", "G03+G04"), (), ("G01+G02",))


def golden(shared: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor, list[str]]:
    with np.load(shared / "golden" / f"velocity_{name}.npz") as file:
        arrays = {key: torch.from_numpy(array) for key, array in file.items()}
    with np.load(shared / "golden" / "graph.npz") as file:
        mask = torch.from_numpy(file["padded_sorted_masked_negative_edges_true"])
        genes = sorted(file["gene_names"].tolist())
    state = {key.removeprefix("state."): value for key, value in arrays.items() if key.startswith("state.")}
    return state, arrays, mask, genes


def velocity(run: scdfm.Run, arrays: dict[str, torch.Tensor], conditions: list[str]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = run.field(
            x_t=arrays["x_t"], t=arrays["t"], control=arrays["control"], genes=arrays["gene_ids"],
            perturbation=run.encoder.encode(conditions).tokens,
            condition=torch.zeros(len(arrays["t"]), dtype=torch.long),
        )  # fmt: skip
    return found


@pytest.mark.parametrize("backbone", ["differential_perceiver", "differential_transformer", "perceiver"])
def test_a_golden_checkpoint_becomes_a_run_with_the_golden_velocity(
    shared: Path, tmp_path: Path, backbone: str
) -> None:
    state, arrays, mask, genes = golden(shared, f"{backbone}_genes")
    # As published, the table has more rows than the vocabulary has names, and the names a wrapper's prefix.
    table = state["encoder.embedding.weight"]
    state["encoder.embedding.weight"] = torch.cat([table, torch.randn(5, table.shape[1])])
    checkpoint = save(tmp_path / "model.pt", {f"module.{name}": value for name, value in state.items()})
    torch.save(mask, tmp_path / "mask.pt")
    heads = int(arrays["n_heads"]) if backbone == "perceiver" else None
    made = convert(
        checkpoint,
        save_vocabulary(tmp_path / "vocab.json", genes),
        tmp_path / "run",
        graph=tmp_path / "mask.pt",
        heads=heads,
        settings=["sampling.steps=2"],
    )
    run = scdfm.Run.load(tmp_path / "run")
    assert run.config.model.backbone == backbone
    assert (run.config.model.heads, run.config.model.layers) == (int(arrays["n_heads"]), int(arrays["n_layers"]))
    tokens = [([*SPECIAL, *genes])[place] for place in arrays["perturbation_ids"][0].tolist()]
    named = "+".join(sorted(name for name in tokens if name != "control"))
    torch.testing.assert_close(velocity(run, arrays, [named]), arrays["velocity"], rtol=0, atol=1e-5)
    assert made.notes[0].startswith(f"{len(state)} tensors: ")

    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"perturbation": ["control"] * 6}, index=[f"c{row}" for row in range(6)])
    controls = ad.AnnData(rng.gamma(1.0, 1.0, (6, 60)).astype(np.float32), obs=obs, var=pd.DataFrame(index=genes[::-1]))
    predicted = run.predict([genes[3], f"{genes[3]}+{genes[1]}"], controls, n_cells=3)
    assert predicted.shape == (6, 60)
    assert list(predicted.var_names) == genes
    assert list(predicted.uns["scdfm"]["extrapolated"]) == []
    with pytest.raises(RunError, match="stores no control cells; give some with --controls"):
        run.predict([genes[3]])
    with pytest.raises(RunError, match="stores no means: it was converted without the data"):
        _ = run.means
    with pytest.raises(ConditionError, match="no condition to predict"):
        run.predict(controls=controls)


def test_a_golden_checkpoint_of_drugs_takes_its_ids_from_the_data(shared: Path, tmp_path: Path) -> None:
    state, arrays, mask, genes = golden(shared, "differential_perceiver_drugs")
    torch.save(mask, tmp_path / "mask.pt")
    names = [f"D{number:02d}" for number in range(63)]  # sorted before control, which has the id 63
    labels = np.repeat(["control", *names], 2)
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{row}" for row in range(len(labels))])
    x = np.random.default_rng(0).gamma(1.0, 1.0, (len(labels), 60)).astype(np.float32)
    cells = read_cells(ad.AnnData(x, obs=obs, var=pd.DataFrame(index=genes)))
    split = Split("named", 0, tuple(names[1:]), (), (names[0],))
    given: dict[str, Any] = {
        "checkpoint": save(tmp_path / "model.pt", state), "vocab": save_vocabulary(tmp_path / "vocab.json", genes),
        "graph": tmp_path / "mask.pt", "perturbation": "drugs", "settings": ["sampling.steps=2"],
    }  # fmt: skip
    run = convert(**given, out=tmp_path / "run", cells=cells, split=split).run
    wanted = [([*names, "control"])[place] for place in arrays["perturbation_ids"][0].tolist()]
    named = "+".join(sorted(name for name in wanted if name != "control"))
    torch.testing.assert_close(velocity(run, arrays, [named]), arrays["velocity"], rtol=0, atol=1e-5)
    assert run.predict(["D05+D09"], n_cells=2).shape == (2, 60)
    with pytest.raises(ConfigError, match="drugs need the data"):
        convert(**given, out=tmp_path / "none")
    many = read_cells(ad.AnnData(x, obs=obs.assign(perturbation=[f"{name}x" if name != "control" else name
                      for name in labels]), var=pd.DataFrame(index=genes)))  # fmt: skip
    state["perturbation_embedder.embedding.weight"] = state["perturbation_embedder.embedding.weight"][:9]
    with pytest.raises(RunError, match="with at least 64 rows, one for each drug"):
        convert(
            **given | {"checkpoint": save(tmp_path / "small.pt", state)}, out=tmp_path / "none", cells=many, split=split
        )


def test_all_219_tensors_of_a_published_checkpoint_are_accounted_for(files: dict[str, Path], tmp_path: Path) -> None:
    made = convert(**files, out=tmp_path / "run")
    assert made.notes[0] == (
        "219 tensors: 211 read, 8 that the official forward pass never reads (p_mask_embed, "
        "perturbation_embedder.embedding.weight, perturbation_embedder.enc_norm.weight, "
        "perturbation_embedder.enc_norm.bias, p_head.1.weight, p_head.1.bias, p_head.0.weight, p_head.0.bias)"
    )
    assert made.notes[1] == "differential_perceiver, width 16, 4 layers, 2 heads"
    assert any("predict needs --controls" in note for note in made.notes)
    assert made.run.manifest.result == {"step": 1234}
    assert made.run.manifest.data["checkpoint"] == "model.pt"
    assert made.run.genes == GENES


def test_with_data_the_run_has_controls_means_split_and_graph(
    files: dict[str, Path], cells: CellTable, split: Split, tmp_path: Path
) -> None:
    files.pop("graph")
    made = convert(**files, out=tmp_path / "run", cells=cells, split=split, settings=["graph.k=3", "sampling.steps=2"])
    run = made.run
    assert any(note.startswith("graph built from the training cells of split additive, fold 0") for note in made.notes)
    assert run.split == split
    assert run.manifest.targets == ["G01", "G02", "G03", "G04"]
    pd.testing.assert_frame_equal(run.means, cells.means(["control", *split.train])[GENES], check_names=False)
    predicted = run.predict(n_cells=4, seed=1)
    assert list(predicted.obs["condition"].cat.categories) == ["G01+G02"]
    assert set(predicted.obs["source_control"]) <= {f"c{row}" for row in range(8)}
    measured = [gene for gene in cells.genes.tolist() if gene in GENES]
    rows = np.sort(np.concatenate([cells.rows(name) for name in ("control", *split.train)]))
    x = cells.X[rows][:, cells.columns(measured)].toarray()
    expected = pd.DataFrame(coexpression_graph(x, k=3, faithful=True), index=measured, columns=measured)
    graph = run.field.gene_encoder.graph
    assert graph is not None
    np.testing.assert_array_equal(graph[4:, 4:].numpy(), expected.loc[GENES, GENES].to_numpy())


class Malicious:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return _write, (str(self.path), "owned")


def _write(path: str, text: str) -> None:
    Path(path).write_text(text)


@pytest.mark.parametrize("place", ["checkpoint", "graph"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_malicious_file_is_refused_and_nothing_of_it_runs(
    files: dict[str, Path], tmp_path: Path, place: str, form: str
) -> None:
    proof = tmp_path / "owned"
    content = {"model_state_dict": {"p_mask_embed": torch.zeros(2)}, "eval_score": Malicious(proof)}
    if form == "pickle":
        files[place].write_bytes(pickle.dumps(Malicious(proof)))
    else:
        torch.save(content, files[place], _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(RunError, match=r"refused and nothing of it was run") as caught:
        convert(**files, out=tmp_path / "run")
    assert not proof.exists()
    assert not (tmp_path / "run").exists()
    assert "\n" not in str(caught.value)


def changed(files: dict[str, Path], change: Any) -> None:
    state = reference.random_state("differential_perceiver", **SIZES)
    change(state)
    save(files["checkpoint"], state)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            lambda s: (s.pop("fusion_layer.0.bias"), s.pop("final_layer.fc.4.bias"), s.update(odd=torch.zeros(1))),
            RunError,
            "2 missing, first 'fusion_layer.0.bias', 'final_layer.fc.4.bias'; 1 unknown, first 'odd'",
        ),
        (lambda s: s.pop("blocks.0.diff_self_attn.attn.lambda_q1"), RunError, "which tell the backbone"),
        (
            lambda s: s.update({"fusion_layer.3.weight": torch.zeros(3)}),
            RunError,
            r"expected shape \[16\], found \[3\]",
        ),
        (lambda s: s.update({"encoder.embedding.weight": torch.zeros(9, 16)}), RunError, "34 tokens, .* has 9 rows"),
        (lambda s: s.clear(), RunError, "expected the parameters of a model, by name"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    files: dict[str, Path], tmp_path: Path, change: Any, error: type[Exception], words: str
) -> None:
    changed(files, change)
    with pytest.raises(error, match=words):
        convert(**files, out=tmp_path / "run")


def test_other_files_that_do_not_fit_are_told(
    files: dict[str, Path], cells: CellTable, split: Split, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="expected the official mask"):
        convert(files["checkpoint"], files["vocab"], out)
    with pytest.raises(ConfigError, match="heads 4: the checkpoint has 2; leave heads out"):
        convert(**files, out=out, heads=4)
    with pytest.raises(RunError, match=r"nothing\.pt cannot be read \(No such file"):
        convert(tmp_path / "nothing.pt", files["vocab"], out, graph=files["graph"])
    with pytest.raises(RunError, match="is no torch file of tensors"):
        convert(files["vocab"], files["vocab"], out, graph=files["graph"])
    with pytest.raises(DataError, match="is not JSON"):
        convert(files["checkpoint"], files["checkpoint"], out, graph=files["graph"])
    with pytest.raises(DataError, match="cannot be read"):
        convert(files["checkpoint"], tmp_path / "none.json", out, graph=files["graph"])
    files["vocab"].write_text('{"<pad>": 0, "A": 2}')
    with pytest.raises(DataError, match="with the ids 0, 1, 2"):
        convert(**files, out=out)
    save_vocabulary(files["vocab"], [*GENES, "ZZ"])
    with pytest.raises(RunError, match="is of 34 tokens, but the vocabulary has 35"):
        convert(**files, out=out)
    with pytest.raises(DataError, match=r"1 of the 31 genes of the vocabulary are not in the data \(first: ZZ\)"):
        convert(files["checkpoint"], files["vocab"], out, cells=cells, split=split)
    torch.save([1, 2], files["graph"])
    with pytest.raises(RunError, match="expected one square tensor"):
        convert(**files, out=out)
    assert not out.exists()
