"""Hits at the top of a ranking."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scdfm.data.reading import read_cells
from scdfm.errors import ConditionError, ConfigError, DataError
from scdfm.evaluation import hits

GENES = [f"G{i:02d}" for i in range(40)]
NAMES = [f"T{k:02d}" for k in range(40)]


def cells(shifts: dict[str, np.ndarray], n: int, seed: int) -> AnnData:
    rng = np.random.default_rng(seed)
    X = np.concatenate([rng.normal(2 + shift, 0.3, (n, len(GENES))) for shift in shifts.values()])
    obs = pd.DataFrame({"perturbation": np.repeat(list(shifts), n)}, index=[f"c{i}" for i in range(len(X))])
    return AnnData(np.maximum(X, 0).astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))


@pytest.fixture(scope="module")
def shifts() -> dict[str, np.ndarray]:
    """Four of forty perturbations are strong, and four others move the signature."""
    rng = np.random.default_rng(0)
    found = {name: rng.normal(0, 0.05, len(GENES)) for name in NAMES}
    for name in NAMES[:4]:
        found[name] = rng.normal(0, 0.6, len(GENES))
        found[name][[0, 1, 2, 9]] = 0
    for name in NAMES[4:8]:
        found[name][:3] += 0.5
    return {"control": np.zeros(len(GENES)), **found}


def test_right_ranking_finds_all_and_wrong_ones_few(shifts):
    real = read_cells(cells(shifts, 30, 1))
    good = cells({name: 0.5 * shifts[name] for name in NAMES}, 20, 2)
    rng = np.random.default_rng(3)
    shuffled = rng.permutation(NAMES)
    bad = cells({name: shifts[other] for name, other in zip(NAMES, shuffled, strict=True)}, 20, 2)
    signature = dict.fromkeys(GENES[:3], 1 / 3) | {GENES[9]: -0.1}
    right, wrong = (hits(p, real, signature=signature).set_index(["model", "score", "share"]) for p in (good, bad))
    for score in ("effect", "signature"):
        row = right.loc["model", score, 0.1]
        assert (row["found"], row["recall"], row["precision"]) == (4, 1, 1)
        assert row["p_chance"] < 1e-4
        assert right.loc[("model", score, 0.05), ["found", "recall", "precision"]].tolist() == [2, 0.5, 1]
        assert right.loc[("model", score, 0.2), ["n_ranked", "recall", "precision"]].tolist() == [8, 1, 0.5]
        chance = right.loc["chance", score, 0.2]
        assert chance["recall"] == pytest.approx(0.2)
        assert chance["precision"] == pytest.approx(0.1)
        assert wrong.loc["model", score, 0.1]["found"] < 3  # the control
    assert "no change" not in right.index.get_level_values("model")


def test_noise_is_no_effect(shifts):
    """A condition of few cells has a large mean shift by chance alone, and is no hit for that."""
    many = cells(shifts, 60, 1)
    few = cells({name: np.zeros(len(GENES)) for name in ("N1", "N2")}, 2, 5)
    few.obs_names = [f"f{i}" for i in range(few.n_obs)]
    import anndata

    real = read_cells(anndata.concat([many, few]))
    assert np.linalg.norm(real.mean("N1") - real.mean("control")) > np.linalg.norm(
        real.mean("T20") - real.mean("control")
    )
    named = [*NAMES[4:], "N1", "N2"]
    predicted = cells({name: shifts.get(name, np.zeros(len(GENES))) for name in named}, 40, 2)
    found = hits(predicted, real).set_index(["model", "score", "share"])
    assert found.loc["model", "effect", 0.1]["recall"] == 1


def test_rules_rank_beside_the_model(shifts):
    rng = np.random.default_rng(4)
    pairs = {f"{a}+{b}": shifts[a] + shifts[b] for a, b in (rng.choice(NAMES[:12], 2, False) for _ in range(60))}
    real = read_cells(cells({**shifts, **pairs}, 20, 6))
    doubles = [c for c in real.conditions if "+" in c]
    table = hits(None, real, conditions=doubles, training=real.means(NAMES))
    at = table.set_index(["model", "share"])
    assert at.loc[("additive", 0.2), "recall"] > 0.6 > at.loc[("chance", 0.2), "recall"]
    assert {"additive", "ridge", "chance"} <= set(table["model"])


def test_what_is_refused(shifts, call, tmp_path):
    real, predicted = cells(shifts, 10, 1), cells({name: shifts[name] for name in NAMES}, 10, 2)
    with pytest.raises(ConfigError, match="3 scored conditions, expected at least 20"):
        hits(predicted, real, conditions=NAMES[:3])
    with pytest.raises(ConfigError, match="share_of_hits 1: expected"):
        hits(predicted, real, share_of_hits=1)
    with pytest.raises(DataError, match="signature: gene 'XIST' is not among the 40"):
        hits(predicted, real, signature={"XIST": 1})
    real.write_h5ad(tmp_path / "real.h5ad")
    predicted.write_h5ad(tmp_path / "predicted.h5ad")
    (tmp_path / "up.txt").write_text("G00\nG01\nG02\n")
    asked = ["hits", tmp_path / "predicted.h5ad", tmp_path / "real.h5ad", "--out", tmp_path / "hits.csv"]
    code, out, _ = call(*asked, "--signature", f"{tmp_path / 'up.txt'},")
    assert code == 0
    assert "chance" in out
    assert set(pd.read_csv(tmp_path / "hits.csv")["score"]) == {"effect", "signature"}


class Untrained:
    """A run before training: it predicts shifted cells, and cannot predict one condition."""

    def __init__(self, shifts: dict[str, np.ndarray], means: pd.DataFrame) -> None:
        self.shifts, self.means = shifts, means

    def untrained(self) -> Untrained:
        return self

    def predict(self, conditions, *, n_cells, genes, seed):
        if NAMES[0] in conditions:
            raise ConditionError(f"condition '{NAMES[0]}' cannot be placed")
        return cells({name: self.shifts[name] for name in conditions}, n_cells, seed)[:, genes]


def test_the_prior_of_a_run_ranks_beside_its_prediction(shifts):
    real = read_cells(cells(shifts, 30, 1))
    wrong = dict(zip(NAMES, np.random.default_rng(3).permutation(list(shifts.values())[1:]), strict=True))
    means = pd.DataFrame([np.full(len(GENES), 2.0)], index=["control"], columns=GENES)
    run = Untrained({name: shifts[name] for name in NAMES}, means)
    table = hits(cells(wrong, 20, 2), real, training=run).set_index(["model", "score", "share"])
    # Three of the four: what cannot be predicted is ranked last.
    assert table.loc["prior", "effect", 0.1]["found"] == 3
    assert table.loc["model", "effect", 0.1]["found"] < 3
    assert "prior" not in hits(cells(wrong, 20, 2), real, training=means)["model"].tolist()


@pytest.mark.parametrize("name", ["prior", "chance", "real"])
def test_a_model_of_another_row_s_name_is_refused(shifts, name):
    real = read_cells(cells(shifts, 5, 1))
    with pytest.raises(ConfigError, match=f"name '{name}' is that of another row"):
        hits(cells(shifts, 5, 1), real, name=name)
