"""Co-expression in control cells as a description of targets: it finds weight where targets of one module answer alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdfm
from scdfm.data import Split
from scdfm.data.features import FeatureTable
from scdfm.data.graph import coexpression_axes
from scdfm.errors import DataError
from scdfm.seeds import numpy_rng

MODULES, TARGETS, GENES = 3, 8, 20
"""Modules of TARGETS perturbed genes each, and further genes that respond."""


def screen(seed: int, together: bool) -> ad.AnnData:
    """Targets of a module move the further genes alike; in control cells a module's genes go up and down together, or,
    where not `together`, with those of other modules."""
    rng = numpy_rng(seed, "modules")
    names = [f"T{place:02d}" for place in range(MODULES * TARGETS)] + [f"G{place:02d}" for place in range(GENES)]
    module = np.repeat(np.arange(MODULES), TARGETS)
    shown = module if together else rng.permutation(module)
    responses = rng.normal(size=(MODULES, GENES))
    labels, blocks = [], []
    for label in ["control", *names[: len(module)]]:
        n = 200 if label == "control" else 30
        cells = 3 + 0.3 * rng.normal(size=(n, len(names)))
        cells[:, : len(module)] += 0.6 * rng.normal(size=(n, MODULES))[:, shown]
        if label != "control":
            cells[:, len(module) :] += responses[module[int(label[1:])]] + 0.2 * rng.normal(size=GENES)
        labels += [label] * n
        blocks.append(cells.clip(0).astype(np.float32))
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{place}" for place in range(len(labels))])
    return ad.AnnData(np.concatenate(blocks), obs=obs, var=pd.DataFrame(index=names))


def fitted(seed: int, out: Path, together: bool = True, **options: Any) -> tuple[scdfm.Run, float]:
    """An instant fit, and its L2 error on two unseen targets of each module."""
    cells = scdfm.read_cells(screen(seed, together))
    test = tuple(f"T{TARGETS * place + k:02d}" for place in range(MODULES) for k in (0, 1))
    train = tuple(name for name in cells.conditions if name not in (*test, "control"))
    config = scdfm.Config.preset("instant")
    run = scdfm.fit(cells, Split("named", 0, train, (), test), config, out=out, progress=False, **options)
    expected = run.predict(n_cells=100, seed=0)
    means = expected.to_df().groupby(expected.obs["perturbation"].astype(str)).mean()
    apart = means.loc[list(test)] - cells.means(test)[list(means.columns)]
    return run, float(np.linalg.norm(apart, axis=1).mean())


def weights(run: scdfm.Run) -> dict[str, float]:
    """What the prior gives each description of targets."""
    assert run.prior is not None
    return {name: weight for name, weight in run.prior.weights.terms.items() if ": " in name}


def test_coexpression_is_borne_out_where_modules_answer_alike(tmp_path: Path) -> None:
    """By 3 standard errors over 3 seeds; where genes go together with those of other modules it changes no bit."""
    gains = []
    for seed in range(3):
        _, without = fitted(seed, tmp_path / f"{seed}-without")
        run, error = fitted(seed, tmp_path / f"{seed}", features="coexpression")
        assert list(weights(run)) == ["similar: coexpression"]
        gains.append(without - error)
    assert np.mean(gains) > 3 * np.std(gains, ddof=1) / 3**0.5
    assert run.encoder.features is not None
    assert run.encoder.features.values.any()
    said: list[str] = []
    _, without = fitted(0, tmp_path / "apart-without", together=False)
    run, error = fitted(0, tmp_path / "apart", together=False, features="coexpression", say=said.append)
    assert not weights(run)
    assert error == without
    assert run.encoder.features is not None
    assert not run.encoder.features.values.any()
    because = run.predict(["T00"], n_cells=2).uns["scdfm"]["extrapolated_because"]
    assert "its features, which tell nothing of this screen's responses" in because[0]
    assert said[-1] == "features that tell nothing of responses, and are not read: coexpression"


def test_coexpression_of_unmeasured_targets_is_refused(tmp_path: Path) -> None:
    adata = screen(0, together=True)
    cells = scdfm.read_cells(adata[:, [name.startswith("G") for name in adata.var_names]].copy())
    train = tuple(name for name in cells.conditions if name != "control")
    with pytest.raises(
        DataError, match=r"features 'coexpression': none of the 24 training targets is a gene of the panel"
    ):
        scdfm.fit(
            cells, Split("named", 0, train, (), ()), scdfm.Config.preset("instant"), out=tmp_path / "run",
            features="coexpression", progress=False,
        )  # fmt: skip


def test_an_interrupted_fit_goes_on_where_coexpression_has_other_last_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They depend on the number of threads; which cells they are of is told by the cells' own digest."""
    first, _ = fitted(0, tmp_path / "run", features="coexpression")

    def otherwise(*given: Any) -> FeatureTable:
        found = coexpression_axes(*given)
        return FeatureTable(found.names, found.values + np.float32(1e-7), found.kind, found.parts)

    monkeypatch.setattr("scdfm.training.inputs.coexpression_axes", otherwise)
    again, _ = fitted(0, tmp_path / "run", features="coexpression", resume=True)
    assert again.manifest == first.manifest
