"""Whole predicted populations: a run, control cells and condition names in; cells with gene names out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from tqdm.auto import tqdm

from scdfm.data import CONTROL, CellTable
from scdfm.data.conditions import canonical, control_of, perturbation_of
from scdfm.data.stored import in_memory, subset
from scdfm.errors import ConditionError, DataError
from scdfm.flow import Keep, Noise, Start, generate
from scdfm.prior import PriorStart, Spread
from scdfm.prior.spread import LEAST_DONORS
from scdfm.run.columns import own_columns
from scdfm.run.contexts import R, cells_in, filled, in_context, in_contexts, require_genes, setting_text
from scdfm.run.controls import checked_context, read_controls
from scdfm.run.cost import foretell
from scdfm.run.counts import Counter
from scdfm.run.extrapolation import extrapolated
from scdfm.run.folder import CONTROLS
from scdfm.run.scale import require_scale
from scdfm.run.trained import Trained
from scdfm.seeds import numpy_rng, torch_rng


def predict(
    run: Trained,
    conditions: Sequence[str] | None = None,
    controls: CellTable | ad.AnnData | str | Path | None = None,
    n_cells: int | None = None,
    genes: Sequence[str] | None = None,
    seed: int = 0,
    progress: bool = False,
    counts: bool = False,
    context: Mapping[str, str] | None = None,
    fill_genes: bool = False,
    device: str = "auto",
) -> ad.AnnData:
    """Generate `n_cells` cells for each condition, each conditioned on one control cell.

    conditions: names such as "A+B" or "JQ1@0.5|cell_line=K562" in any order; None predicts the test conditions of the
        run's split.
    controls: control cells (log1p, at the run's scale); None takes those stored with the run. Other
        conditions in the table are ignored. Each condition starts from those of its own covariates. Values of covariates
        that training never had are known by these cells (`scdfm.run.contexts`).
    context: covariates of all control cells, `{"cell_line": "A549"}`, where the file does not say them or has others
        too; conditions that name no such covariate are of this context.
    fill_genes: genes of the run that the file lacks take the values of stored control cells; var["filled"] marks them.
    device: "cpu", "cuda" or "auto", which takes a GPU where there is one.
    n_cells: cells per condition; None takes `sampling.cells` of the run's config.
    genes: those of the panel to return, None for all. With `sampling.genes` "joint" they alone are solved, together,
        as the published evaluation does with its 1,000; with "chunks" they are cut out of the whole panel.
    counts: whole counts in place of log1p values (`scdfm.run.counts`); obs then holds each cell's `library_size`.
    seed: each condition draws from streams of its own, so a population does not depend on what else is asked.

    Returns AnnData [conditions · n_cells, genes] of log1p expression. obs holds the condition under the run's perturbation
    key, the other columns of the user's own file (`scdfm.run.columns`), and `source_control`, the name of the control cell.
    var["unmeasured_in"] names, of screens joined on the genes of any, those that did not measure the gene: their conditions
    are predicted there by the other screens.
    uns["scdfm"] is the provenance, with the conditions that are `extrapolated` and, in `extrapolated_because`, why. Raises
    ConditionError for a condition the run knows too little of, or without control cells, DataError for controls that do
    not fit the run.
    """
    n_cells = run.config.sampling.cells if n_cells is None else n_cells
    if n_cells < 1:
        raise DataError(f"cells per condition: expected at least 1, found {n_cells}")
    run, table = starting(run, controls, context, fill_genes, seed)
    names = condition_names(run, conditions, context)

    def work(names: Sequence[str], n: int, progress: bool = False) -> ad.AnnData:
        return populations(run, names, table, n, genes, counts, seed, progress, device, stored=controls is None)

    n_genes = len(run.genes if genes is None else genes)
    foretell(run, names, n_cells, n_genes, len(names), work, say=None)  # the log alone
    return work(names, n_cells, progress)


def starting(
    run: R,
    controls: CellTable | ad.AnnData | str | Path | None,
    context: Mapping[str, str] | None = None,
    fill_genes: bool = False,
    seed: int = 0,
) -> tuple[R, CellTable]:
    """The control cells that a prediction starts from, and the run as it knows their contexts; options as of `predict`."""
    if controls is None:
        if context or fill_genes:
            raise DataError(
                "a context and genes to fill in are about control cells of your own; give them (--controls, controls=...)"
            )
        return run, run.controls
    table = control_table(run, controls, context)
    if fill_genes:
        table = filled(run, table, seed)
    return in_contexts(run, table), table


def populations(
    run: Trained,
    names: Sequence[str],
    table: CellTable,
    n_cells: int,
    genes: Sequence[str] | None,
    counts: bool,
    seed: int,
    progress: bool,
    device: str,
    *,
    stored: bool,
    keep: Callable[[str], Keep] | None = None,
) -> ad.AnnData:
    """What `predict` returns for canonical `names` from the control cells `table`.

    keep: gives for a condition what `generate` asks for blocks that may be known from before.
    """
    solved, columns = _solved_genes(run, genes)
    require_genes(run, table, solved)
    expression = table.X[:, table.columns(solved)]
    own = {name: table.control_rows(name) for name in names}
    start = _start(run, table, solved)
    law = Counter.of(run.count_law, run.genes, table, [solved[place] for place in columns]) if counts else None
    place = device_of(device)
    field = run.field.to(place)
    ids = torch.from_numpy(run.vocabulary.gene_ids(solved)).to(place)
    blocks, sources = [], []
    for name in tqdm(names, desc="predict", unit="condition", disable=not progress):
        rng, shares = numpy_rng(seed, "controls", name), table.control_shares(name)
        rows = own[name][_draw(len(own[name]), n_cells, rng) if shares is None else _shared(shares, n_cells, rng)]
        control = torch.from_numpy(expression[rows].toarray()).to(place)
        population = _population(run, field, name, control, ids, seed, start(name), keep and keep(name))
        returned = population[:, columns]
        if law is not None:
            returned = law.counts(returned, rows, numpy_rng(seed, "counts", name))
        blocks.append(sp.csr_matrix(returned))
        sources.append(rows)
    cells = sp.vstack(blocks, format="csr")
    drawn = np.concatenate(sources)
    returned_genes = [solved[place] for place in columns]
    adata = _as_adata(run, names, returned_genes, n_cells, cells, table.obs.iloc[drawn], seed, stored)
    if table.filled:
        adata.var["filled"] = adata.var_names.isin(table.filled)
    if unmeasured := run.manifest.unmeasured:
        adata.var["unmeasured_in"] = [
            ",".join(screen for screen, genes in unmeasured.items() if gene in genes) for gene in adata.var_names
        ]
    if law is not None:
        law.describe(adata, drawn)
    return adata


def device_of(name: str) -> torch.device:
    """The device of `predict`; DataError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise DataError(f"device '{name}': expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise DataError("device 'cuda': torch finds no GPU here; expected auto or cpu")
    return torch.device(name)


def condition_names(
    run: Trained, conditions: Sequence[str] | None, context: Mapping[str, str] | None = None
) -> list[str]:
    """The canonical names of what is asked for, in a context where they name none; ConditionError where one cannot be
    predicted."""
    if conditions is None:
        conditions = run.split.test
    if isinstance(conditions, str):
        conditions = [conditions]
    canonical = map(run.manifest.naming.canonical, conditions)
    names = list(dict.fromkeys(in_context(name, context or {}) for name in canonical))
    if not names:
        none = "; the run's split keeps no test condition" if conditions is run.split.test else ""
        raise ConditionError(f"no condition to predict: give at least one name, e.g. 'A' or 'A+B'{none}")
    populations = run.manifest.control_populations
    for name in names:
        if perturbation_of(name) == CONTROL and name not in populations:
            also = f" or one of the populations trained: {', '.join(populations)}" if populations else " only"
            raise ConditionError(f"condition '{name}': nothing to predict; ask for perturbed conditions{also}")
    run.encoder.encode(names)  # refuses what the run knows too little of before any work is done
    return names


def control_table(
    run: Trained, controls: CellTable | ad.AnnData | str | Path, context: Mapping[str, str] | None = None
) -> CellTable:
    """The control cells of `controls`, of a context where one is given; they must be on the run's scale."""
    scale = run.manifest.scale
    if not isinstance(controls, CellTable):
        controls = read_controls(controls, run.manifest, context=context)
    elif context:
        controls = cells_in(controls, checked_context(run.manifest, context))
    target_sum = controls.scale.target_sum
    if None not in (target_sum, scale["target_sum"]) and target_sum != scale["target_sum"]:
        raise DataError(
            f"controls: log1p of counts per {target_sum:g}, but the run was fitted at {scale['target_sum']:g}; "
            f"read them with target_sum={scale['target_sum']:g}"
        )
    covariates = tuple(run.manifest.conditions.covariates)
    if lacking := [key for key in covariates if key not in controls.covariates]:
        raise DataError(
            f"controls: the run's covariate '{lacking[0]}' is none of the table's "
            f"({', '.join(controls.covariates) or 'none'}); read them with covariates={covariates}"
        )
    table = controls.select([CONTROL])
    require_scale(run, table.X, list(map(str, table.genes)), "controls")
    return table


def _solved_genes(run: Trained, genes: Sequence[str] | None) -> tuple[list[str], list[int]]:
    """The genes that are solved, and which of them are returned."""
    panel = {gene: place for place, gene in enumerate(run.genes)}
    requested_genes = list(panel if genes is None else dict.fromkeys(genes))
    unknown = [gene for gene in requested_genes if gene not in panel]
    if unknown or not requested_genes:
        raise DataError(
            f"genes: {len(unknown)} of the {len(requested_genes)} asked for are not in the run's panel of {len(panel)} "
            f"(first: {unknown[0]}); ask for genes of the run"
            if unknown
            else "genes: none asked for; name some"
        )
    if run.config.sampling.genes == "joint":
        return requested_genes, list(range(len(requested_genes)))
    return run.genes, [panel[gene] for gene in requested_genes]


def _shared(shares: np.ndarray, n_cells: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of control cells of which each counts by its share [n]: evenly over their sum, in any order."""
    places = (np.arange(n_cells) + rng.random()) / n_cells
    order = rng.permutation(len(shares))
    return rng.permutation(order[np.minimum(np.searchsorted(np.cumsum(shares[order]), places), len(shares) - 1)])


def _draw(n_controls: int, n_cells: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of control cells: without replacement as far as they go."""
    rounds = [rng.permutation(n_controls) for _ in range(-(-n_cells // n_controls))]
    return np.concatenate(rounds)[:n_cells]


def _start(run: Trained, table: CellTable, genes: list[str]) -> Callable[[str], Start]:
    """Where the flow of each condition starts: at noise, or at its control cells' mean plus the shift that is expected."""
    panel = {gene: place for place, gene in enumerate(run.genes)}
    places = [panel[gene] for gene in genes]
    if run.config.flow.source == "gaussian":
        return lambda name: Noise(len(genes))
    if run.config.flow.source == "poisson":
        return lambda name: Noise(len(genes), "poisson", run.rates[places])
    columns = table.columns(genes)
    # Of the whole panel it is the run's own, which keeps what it has computed from shard to shard.
    spread = run.spread if genes == run.genes else run.spread.on(torch.tensor(places))
    home: dict[str, Spread] = {}
    shrinkage = run.manifest.shrinkage if run.config.sampling.shrink else None
    # run.means rest on more cells than those stored, but know no covariates.
    whole = not run.manifest.conditions.covariates and _is_stored(run, table)
    known = set(run.known)

    def start(name: str) -> Start:
        mean_of_all = whole and name not in table.elsewhere
        control = run.means.loc[CONTROL].to_numpy()[places] if mean_of_all else table.control_mean(name)[columns]
        # One by one: what a condition starts from must not depend, in any bit, on what else is asked.
        prior = run.knowing([name], table, blind=canonical(name) not in known)
        expected = control + prior.predict([name])[:, places]
        setting = control_of(name)
        rows = table.control_rows(name)
        if setting not in {**spread.settings, **home} and len(rows) >= LEAST_DONORS:
            own = in_memory(subset(table.X, rows, columns)).toarray().astype(np.float64)
            home[setting] = spread.at_home(own, setting, torch_rng(run.manifest.seed, "zeros", setting))
        doubt = np.zeros(1) if shrinkage is None else prior.doubt([name])  # nobody else asks for it
        around = PriorStart.around(home.get(setting, spread), [name], expected, control[None], doubt)
        return replace(around, shrinkage=shrinkage)

    return start


def _is_stored(run: Trained, table: CellTable) -> bool:
    """Whether these are the control cells that the run stores."""
    if CONTROLS not in run.manifest.digests:
        return False
    return table is run.controls or table.digest() == run.controls.digest()


def _population(
    run: Trained,
    field: Any,
    name: str,
    control: torch.Tensor,
    genes: torch.Tensor,
    seed: int,
    start: Start,
    keep: Keep | None,
) -> np.ndarray:
    """One predicted population [M, genes]."""
    sampling = run.config.sampling
    perturbation = run.encoder.encode([name]).to(control.device)
    condition = torch.zeros(len(control), dtype=torch.long, device=control.device)
    cells = generate(
        field, control=control, perturbation=perturbation, condition=condition, genes=genes, sampling=sampling,
        genes_per_step=run.config.flow.genes_per_step, rng=torch_rng(seed, "noise", name), start=start,
        keep=keep,
    )  # fmt: skip
    return cells.float().cpu().numpy()


def _as_adata(
    run: Trained,
    names: Sequence[str],
    genes: list[str],
    n_cells: int,
    cells: sp.csr_matrix,
    sources: pd.DataFrame,
    seed: int,
    stored: bool,
) -> ad.AnnData:
    index = [f"{name}_{i}" for name in names for i in range(n_cells)]
    obs = pd.DataFrame(own_columns(run, names, n_cells, sources), index=pd.Index(index, name="cell"))
    beyond = extrapolated(run, names)
    adata = ad.AnnData(cells, obs=obs, var=pd.DataFrame(index=pd.Index(genes, name="gene")))
    adata.uns["scdfm"] = {
        "version": run.manifest.versions["scdfm"],
        "weights": run.manifest.digests["weights.safetensors"],
        "data": run.manifest.data["digest"],
        "split": run.split.digest,
        "scale": {key: value for key, value in run.manifest.scale.items() if value is not None},
        "seed": seed,
        "sampling": run.config.sampling.model_dump_json(),
        "config": hashlib.sha256(run.config.model_dump_json().encode()).hexdigest(),
        "controls": "stored with the run" if stored else "given",
        "cells_per_condition": n_cells,
        "contexts": [f"{setting_text(name)}: {reason}" for name, reason in run.contexts.items()],
        "extrapolated": list(beyond),
        "extrapolated_because": list(beyond.values()),
    }
    return adata
