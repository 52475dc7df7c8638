"""Fits of screens with covariates, doses and features: what reaches the run, and what it predicts."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import scdfm
import small
from scdfm import report
from scdfm.data.features import table
from scdfm.data.simulate import simulate_cell_types, simulate_doses, simulate_drugs
from scdfm.errors import ConditionError, ConfigError, DataError, RunError
from scdfm.training.module import FlowModule

SMALL = small.options(
    flow={"genes_per_step": 20},
    training=small.SIX_STEPS | {"conditions_per_batch": 3, "keep_controls": 30},
    sampling={"steps": 2, "cells": 6},
)
DRUGS = {"model": {"perturbation": "drugs"}}


def split_of(cells: scdfm.CellTable, test: list[str]) -> scdfm.Split:
    perturbed = [name for name in cells.conditions if name != "control"]
    rest = tuple(name for name in perturbed if name not in test)
    return scdfm.Split("named", 0, rest[1:], rest[:1], tuple(test))


def fitted(cells: scdfm.CellTable, test: list[str], out: Path, *over: dict[str, Any], **options: Any) -> scdfm.Run:
    config = scdfm.Config().updated(SMALL)
    for values in over:
        config = config.updated(values)
    return scdfm.fit(cells, split_of(cells, test), config, out=out, progress=False, **options)


def weights(run: scdfm.Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "weights.safetensors")


@pytest.fixture(scope="module")
def typed() -> scdfm.CellTable:
    adata = simulate_cell_types(
        n_genes=30, n_targets=3, n_types=3, cells_per_condition=8, n_controls=20, truth_cells=2, seed=1
    )
    return scdfm.read_cells(adata, covariates=["cell_type"])


@pytest.fixture(scope="module")
def typed_test(typed: scdfm.CellTable) -> list[str]:
    return [name for name in typed.conditions if name.endswith("|cell_type=type3")]


@pytest.fixture(scope="module")
def typed_run(typed, typed_test, tmp_path_factory) -> scdfm.Run:
    return fitted(typed, typed_test, tmp_path_factory.mktemp("typed") / "run")


@pytest.fixture(scope="module")
def dosed() -> scdfm.CellTable:
    adata = simulate_doses(
        n_genes=30, n_drugs=3, n_doses=3, cells_per_condition=8, n_controls=20, truth_cells=2, seed=1
    )
    return scdfm.read_cells(adata, "drug", dose_key="dose")


@pytest.fixture(scope="module")
def dosed_run(dosed, tmp_path_factory) -> scdfm.Run:
    return fitted(dosed, ["drug1@0.316"], tmp_path_factory.mktemp("dosed") / "run", DRUGS)


@pytest.fixture(scope="module")
def described() -> tuple[scdfm.CellTable, pd.DataFrame]:
    adata = simulate_drugs(
        n_genes=30, n_drugs=6, n_features=3, cells_per_condition=8, n_controls=20, truth_cells=2, seed=1
    )
    return scdfm.read_cells(adata, "drug"), pd.DataFrame(adata.uns["features"])


@pytest.fixture(scope="module")
def described_run(described, tmp_path_factory) -> scdfm.Run:
    cells, features = described
    return fitted(cells, ["drug2"], tmp_path_factory.mktemp("drugs") / "run", DRUGS, features=features)


def test_the_manifest_carries_what_prediction_needs(typed_run, typed_test) -> None:
    manifest = json.loads((typed_run.path / "manifest.json").read_text())
    assert manifest["conditions"]["covariates"] == {"cell_type": ["type1", "type2", "type3"]}
    assert manifest["control_populations"] == [f"control|cell_type=type{i}" for i in (1, 2, 3)]
    assert manifest["design"]["covariates"] == ["cell_type"]
    stored = scdfm.Run.load(typed_run.path).controls
    assert stored.obs["cell_type"].value_counts().to_dict() == {f"type{i}": 10 for i in (1, 2, 3)}


def test_a_held_out_cell_type_starts_from_its_own_controls(typed_run, typed_test, typed) -> None:
    predicted = typed_run.predict(seed=1)
    assert list(predicted.obs["perturbation"].cat.categories) == typed_test
    assert set(predicted.obs["cell_type"]) == {"type3"}
    sources = typed_run.controls.obs.loc[predicted.obs["source_control"], "cell_type"]
    assert set(sources) == {"type3"}
    said = predicted.uns["scdfm"]
    assert list(said["extrapolated"]) == typed_test
    assert all(
        why.endswith("was never perturbed in training with cell_type type3") for why in said["extrapolated_because"]
    )
    again = typed_run.predict(seed=1, controls=typed)
    assert set(typed.obs.loc[again.obs["source_control"], "cell_type"]) == {"type3"}


def velocity(run: scdfm.Run, condition: str) -> torch.Tensor:
    """The velocity of five given cells under a condition."""
    genes = torch.from_numpy(run.vocabulary.gene_ids(run.genes))
    cells = torch.rand(5, len(genes), generator=torch.Generator().manual_seed(0))
    asked, first = run.encoder.encode([condition]), torch.zeros(5, dtype=torch.long)
    with torch.no_grad():
        return run.field(
            x_t=cells,
            t=torch.full((5,), 0.4),
            control=cells,
            genes=genes,
            perturbation=asked,
            condition=first,
            expected=cells[:1],
            shift=torch.zeros_like(cells[:1]),
        )


def test_a_covariate_changes_the_velocity_of_one_and_the_same_cell(typed_run) -> None:
    target = typed_run.manifest.targets[0]
    one, two = (velocity(typed_run, f"{target}|cell_type=type{i}") for i in (1, 2))
    assert (one - two).abs().max() > 1e-5


def test_control_populations_are_predicted_where_they_were_trained(typed_run, typed, typed_test, tmp_path) -> None:
    predicted = typed_run.predict(["control|cell_type=type3"])
    assert list(predicted.uns["scdfm"]["extrapolated"]) == []
    never = fitted(typed, typed_test, tmp_path / "run", {"training": {"control_populations": "never", "max_steps": 1}})
    assert never.manifest.control_populations == []
    with pytest.raises(ConditionError, match="'control|cell_type=type1': nothing to predict"):
        never.predict(["control|cell_type=type1"])
    with pytest.raises(ConditionError, match="'type3' is no known value of covariate 'cell_type'"):
        never.predict()


def test_names_and_controls_that_do_not_fit_are_refused(typed_run, typed) -> None:
    target = typed_run.manifest.targets[0]
    with pytest.raises(ConditionError, match="has no covariate 'cell_type'"):
        typed_run.predict([target])
    with pytest.raises(ConditionError, match="'type9' is no known value .* expected one of 'type1', 'type2', 'type3'"):
        typed_run.predict([f"{target}|cell_type=type9"])
    some = typed.take(np.flatnonzero((typed.obs["cell_type"] != "type2").to_numpy()))
    with pytest.raises(ConditionError, match=f"'{target}.cell_type=type2' has no control cells of its own"):
        typed_run.predict([f"{target}|cell_type=type2"], controls=some)
    plain = typed.select(["control"]).to_adata()
    with pytest.raises(DataError, match=r"controls: the run's covariate 'cell_type' is none of the table's \(none\)"):
        typed_run.predict(controls=scdfm.read_cells(plain))


def test_dose_nought_is_control_to_the_bit(dosed_run) -> None:
    assert dosed_run.manifest.control_populations == ["control"]
    assert dosed_run.manifest.conditions.dose_reference == pytest.approx(0.316)
    nought, control, dose = (velocity(dosed_run, name) for name in ("drug1@0", "control", "drug1@10"))
    assert torch.equal(nought, control)
    assert (dose - control).abs().max() > 1e-5
    assert not dosed_run.prior.predict(["drug1@0"]).any()
    assert list(dosed_run.predict(["drug1@0"]).uns["scdfm"]["extrapolated"]) == []


def test_unseen_doses_are_predicted_and_told(dosed_run) -> None:
    asked = ["drug1@0.316", "drug2@0.05", "drug2@50", "drug2", "drug2@0.1+drug3@1"]
    predicted = dosed_run.predict(asked)
    said = dict(zip(*(predicted.uns["scdfm"][k] for k in ("extrapolated", "extrapolated_because")), strict=True))
    assert said == {
        "drug1@0.316": "dose 0.316 of 'drug1' is outside the trained 10 to 10",  # its lowest dose validates
        "drug2@50": "dose 50 of 'drug2' is outside the trained 0.01 to 10",
        "drug2": "'drug2' has no dose: taken as the usual one of the screen, 0.316",
    }
    means = [predicted[predicted.obs["drug"] == name].X.toarray() for name in asked]
    assert all(np.isfinite(mean).all() for mean in means)


def test_a_drug_never_seen_is_predicted_from_its_features_alone(described_run, described) -> None:
    _, features = described
    predicted = described_run.predict(["drug2", "drug3", "drug2+drug3"])
    said = predicted.uns["scdfm"]
    assert list(said["extrapolated"]) == ["drug2", "drug2+drug3"]
    assert set(said["extrapolated_because"]) == {"'drug2' was never perturbed in training: predicted from its features"}
    encoded = described_run.encoder.encode(["drug2"])
    assert encoded.identified is not None
    assert encoded.identified.tolist() == [[False, True]]
    # Standardised over the training drugs alone: drug2 tests, drug1 validates.
    trained = features.drop(index=["drug1", "drug2"])
    expected = (features.loc["drug2"] - trained.mean()) / trained.std(ddof=0)
    assert encoded.features is not None
    np.testing.assert_allclose(encoded.features[0, 0], expected, rtol=1e-4)
    assert "features.safetensors" in described_run.manifest.digests
    again = scdfm.Run.load(described_run.path).predict(["drug2"], seed=3)
    assert (again.X != described_run.predict(["drug2"], seed=3).X).nnz == 0


def test_without_features_a_drug_never_seen_is_refused_and_validates_nothing(described, tmp_path) -> None:
    cells, _ = described
    run = fitted(cells, ["drug2"], tmp_path / "run", DRUGS)
    assert run.split.validation == ("drug1",)
    assert "val_wasserstein" not in run.manifest.result
    with pytest.raises(
        ConditionError, match=r"nothing is known of 'drug2'.*expected features of it \(fit with --features"
    ):
        run.predict(["drug2"])


def test_features_are_read_from_files_that_the_config_names(described, described_run, tmp_path) -> None:
    cells, features = described
    features.rename_axis("drug").to_csv(tmp_path / "z.csv")
    run = fitted(cells, ["drug2"], tmp_path / "run", DRUGS, {"model": {"features": [str(tmp_path / "z.csv")]}})
    ours, theirs = weights(run), weights(described_run)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


def test_features_of_other_names_are_refused(described, tmp_path) -> None:
    cells, features = described
    renamed = features.rename(index=lambda name: f"compound {name}")
    with pytest.raises(DataError, match=r"none of the 4 training targets has a row \(first: 'drug3'; first row: 'comp"):
        fitted(cells, ["drug2"], tmp_path / "run", DRUGS, features=table(renamed))


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("kind", ["typed", "dosed", "described"])
def test_same_seed_same_bits_and_resuming_too(kind: str, request: pytest.FixtureRequest, tmp_path) -> None:
    run = request.getfixturevalue(f"{kind}_run")
    given = request.getfixturevalue(kind)
    cells, options = (given[0], {"features": given[1]}) if kind == "described" else (given, {})
    real = FlowModule.training_step

    def dying(self: FlowModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == 4:
            raise StoppedError
        return real(self, batch, batch_idx)

    def again(**more: Any) -> scdfm.Run:
        return scdfm.fit(cells, run.split, run.config, out=tmp_path / "run", progress=False, **options, **more)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(FlowModule, "training_step", dying)
        again()
    resumed = again(resume=True)
    ours, theirs = weights(resumed), weights(run)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_resuming_with_other_features_is_refused(described, described_run) -> None:
    cells, features = described
    with pytest.raises(RunError, match="started with other features; repeat"):
        scdfm.fit(
            cells, described_run.split, described_run.config, out=described_run.path, features=features * 2,
            resume=True, progress=False,
        )  # fmt: skip


def test_guidance_needs_dropped_conditions_and_changes_predictions(dosed, tmp_path) -> None:
    with pytest.raises(ConfigError, match="set training.condition_dropout"):
        scdfm.Config().updated({"sampling": {"guidance": 2.0}})
    trained = {"training": {"condition_dropout": 0.3}, "sampling": {"shrink": False}}
    plain = fitted(dosed, ["drug1@0.316"], tmp_path / "a", DRUGS, trained)
    assert "conditioning.null" in weights(plain)
    assert weights(plain)["conditioning.null"].any()
    copy = shutil.copytree(plain.path, tmp_path / "b")
    values = json.loads((copy / "manifest.json").read_text())
    values["config"]["sampling"]["guidance"] = 3.0
    (copy / "manifest.json").write_text(json.dumps(values))
    one, three = plain.predict(seed=1).X.toarray(), scdfm.Run.load(copy).predict(seed=1).X.toarray()
    assert np.abs(one - three).max() > 1e-4


def test_conditions_of_one_cell_train_where_that_is_asked_for(dosed, tmp_path) -> None:
    firsts = [dosed.rows(name)[:1] for name in dosed.conditions if name != "control"]
    thin = dosed.take(np.concatenate([dosed.rows("control"), *firsts]))
    with pytest.raises(ConditionError, match="1 cell, expected at least 2"):
        fitted(thin, ["drug1@0.316"], tmp_path / "a", DRUGS)
    run = fitted(thin, ["drug1@0.316"], tmp_path / "b", DRUGS, {"training": {"min_cells": 1}})
    assert np.isfinite(run.predict().X.data).all()


def test_a_file_of_many_shards_keeps_reasons_and_covariates(typed_run, typed_test, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("scdfm.run.shards.SHARD_CELLS", 6)
    asked = [typed_run.split.train[0], *typed_test]
    whole = typed_run.predict(asked, seed=2)
    written = typed_run.predict_to(tmp_path / "p.h5ad", asked, seed=2)
    assert written.extrapolated == dict(
        zip(*(whole.uns["scdfm"][k] for k in ("extrapolated", "extrapolated_because")), strict=True)
    )
    assert list(written.extrapolated) == typed_test
    back = ad.read_h5ad(tmp_path / "p.h5ad")
    assert list(back.uns["scdfm"]["extrapolated_because"]) == list(written.extrapolated.values())
    assert back.obs["cell_type"].astype(str).tolist() == whole.obs["cell_type"].astype(str).tolist()
    assert (back.X != whole.X).nnz == 0


def test_the_report_tells_what_is_extrapolated(typed_run, typed, typed_test, tmp_path) -> None:
    predicted = typed_run.predict(seed=1)
    real = typed.select(["control", *typed_test])
    table = scdfm.evaluate(predicted, real, training=typed_run, metrics=["l2"])
    page = report.write(tmp_path, table, run=typed_run).read_text(encoding="utf-8")
    assert f"3 conditions are extrapolations: {typed_test[0]} (" in html.unescape(page)
    assert "was never perturbed in training with cell_type type3" in html.unescape(page)


def test_features_and_extrapolations_from_the_command_line(call, tmp_path) -> None:
    adata = simulate_drugs(
        n_genes=30, n_drugs=6, n_features=3, cells_per_condition=8, n_controls=20, truth_cells=2, seed=1
    )
    adata.obs["part"] = np.where(adata.obs["drug"] == "drug2", "test", "train")
    adata.uns.pop("features").rename_axis("drug").to_csv(tmp_path / "z.csv")
    adata.write_h5ad(tmp_path / "s.h5ad")
    settings = [f"--set={name}.{key}={value}" for name in SMALL for key, value in SMALL[name].items()]
    code, _, _ = call(
        "fit", tmp_path / "s.h5ad", "--out", tmp_path / "run", "--perturbation-key", "drug", "--split", "obs:part",
        "--features", tmp_path / "z.csv", "--set", "model.perturbation=drugs", *settings, "--quiet",
    )  # fmt: skip
    assert code == 0
    assert scdfm.Run.load(tmp_path / "run").config.model.features == (str(tmp_path / "z.csv"),)
    code, _, said = call("predict", tmp_path / "run", "--test", "--out", tmp_path / "p.h5ad", "--quiet")
    assert code == 0
    assert "1 condition is an extrapolation: drug2 ('drug2' was never perturbed in training" in said
    code, _, said = call("predict", tmp_path / "run", "--conditions", "drug9", "--out", tmp_path / "q.h5ad")
    assert code == 2
    assert "or with a row for it in the features" in said


def test_fit_says_before_the_first_step_what_it_will_not_predict(tmp_path: Path) -> None:
    screen = simulate_drugs(n_genes=30, n_drugs=5, cells_per_condition=8, n_controls=20, truth_cells=2, seed=1)
    cells = scdfm.read_cells(screen, "drug")
    held = [name for name in cells.conditions if name != "control"][-2:]
    said: list[str] = []

    def listening(text: str) -> None:
        assert not (tmp_path / "ids" / "log.csv").exists()
        said.append(text)

    fitted(cells, held, tmp_path / "ids", DRUGS, say=listening)
    note, *of_validation = said
    assert all("validation condition" in text for text in of_validation)
    assert note.startswith("2 of 2 test conditions cannot be predicted, since training tells nothing of")
    assert ", ".join(held) in note
    assert "--features" in note
    told: list[str] = []
    features = table(screen.uns["features"])
    fitted(cells, held, tmp_path / "features", DRUGS, say=told.append, features=features)
    assert told == []


def test_every_reason_of_an_extrapolation_is_told(tmp_path: Path) -> None:
    """A drug that is asked for without its dose, in a cell type that never saw it, is both."""
    screen = simulate_doses(n_genes=20, n_drugs=3, n_doses=3, cells_per_condition=10, n_controls=20, seed=0)
    screen.obs["type"] = "T"
    others = screen[(screen.obs["drug"] != "drug1").to_numpy()].copy()
    others.obs["type"], others.obs_names = "B", others.obs_names + "b"
    both = ad.concat([screen, others])
    cells = scdfm.read_cells(both, "drug", dose_key="dose", covariates=["type"])
    config = scdfm.Config.preset("instant").with_settings(["split.kind=none"])
    run = scdfm.fit(cells, config=config, out=tmp_path / "run", progress=False)
    (why,) = run.predict(["drug1|type=B"], n_cells=2).uns["scdfm"]["extrapolated_because"]
    assert why.startswith(
        "'drug1' was never perturbed in training with type B; 'drug1' has no dose: taken as the usual"
    )
