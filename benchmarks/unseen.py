"""Targets that nobody measured: the prior alone with and without what is known of genes and drugs, beside simple rules.

    python benchmarks/unseen.py NORMAN_LIKE.h5ad DATA [--parts norman-like,norman,papalexi,ljp005,ht115] [--draws 8]

NORMAN_LIKE is a screen of singles and doubles, DATA the folder of go_human_annotations.tsv.gz, go_parents.tsv.gz,
human_gene_names.tsv.gz, norman_effects.npz, papalexi.h5ad, ljp005_A375_59drugs_6doses.h5ad and
prnet_l1000_HT115_349drugs.h5ad. Nothing is trained: the prior's means, L2 of conditions, seconds a draw. Shuffled features
are the same rows handed to other targets. Intervals are 95% of the mean over draws (norman: over targets), by Student's t.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from scipy.stats import spearmanr
from scipy.stats import t as student

import scdfm
from accuracy import NARROW, unseen_targets
from scdfm.data import select_genes
from scdfm.data.conditions import targets
from scdfm.data.features import FeatureTable, combine, morgan, read
from scdfm.evaluation.baselines import Training, covariance, low_rank, no_change, ridge, training_mean
from scdfm.evaluation.prior import linked
from scdfm.evaluation.pseudobulk import Population
from scdfm.prior import EffectPrior, learn_prior
from scdfm.prior.descriptions import Sizes
from scdfm.prior.kernel import every_target
from scdfm.seeds import numpy_rng

CELLS = 20
"""Cells of each condition that tell the variance of genes."""
Rows = dict[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """What is known of a screen, and the conditions to be predicted."""

    genes: tuple[str, ...]
    names: tuple[str, ...]
    means: np.ndarray
    controls: np.ndarray
    counts: tuple[int, ...]
    variances: np.ndarray
    tests: tuple[str, ...]
    real: np.ndarray
    test_controls: np.ndarray
    test_counts: tuple[int, ...]
    population: Population

    def prior(self, features: FeatureTable | None, sized: bool = True) -> EffectPrior:
        """The prior with the features brought to one scale on the training targets, as a fit does; not `sized`: as if
        nothing told how large a response is."""
        rows = None
        if features is not None:
            known = [target for target in every_target(self.names) if target in features]
            rows = features.standardiser(known)(features).rows_of()
        shifts = self.means - self.controls
        learned = learn_prior(self.names, shifts, self.counts, self.variances, self.genes, rows, self.controls)
        prior = learned.prior if sized else replace(learned.prior, sizes=Sizes())
        return prior.knowing(every_target(self.tests), rows)

    def rules(self) -> Rows:
        """L2 of each test condition by the simple rules; NaN where one has no answer."""
        links = linked(self.population, self.names, self.tests)
        table = Training(self.names, self.means, self.controls[0], self.genes, linked=links)
        rules = (no_change, training_mean, ridge, low_rank, covariance)
        return {rule.__name__.replace("_", " "): self.errors(rule(table, self.tests)) for rule in rules}

    def errors(self, means: np.ndarray) -> np.ndarray:
        """L2 [K] of predicted means."""
        return np.asarray(np.linalg.norm(np.maximum(means, 0) - self.real, axis=1))

    def surprise(self, prior: EffectPrior) -> tuple[np.ndarray, np.ndarray]:
        """Squared errors [K] of a prior, and those that it expects with the noise of measuring: sizes included."""
        noise = self.variances.sum() / np.array(self.test_counts)
        return self.predicted(prior) ** 2, prior.doubt(self.tests) + noise

    def predicted(self, prior: EffectPrior) -> np.ndarray:
        """L2 [K] of a prior."""
        return self.errors(self.test_controls + prior.predict(self.tests))


def task(cells: scdfm.CellTable, names: Sequence[str], tests: Sequence[str], genes: Sequence[str]) -> Task:
    """The task of predicting `tests` from `names`, on `genes`."""
    columns = cells.columns(genes)
    means = cells.means(names).to_numpy()[:, columns]
    rows = [cells.rows(name)[:CELLS] for name in names if cells.n_cells(name) > 1] or [cells.rows("control")]
    values = cells.X[np.concatenate(rows)][:, columns].toarray()
    lengths = [len(some) for some in rows]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    around = values - np.repeat(np.add.reduceat(values, starts) / np.array(lengths)[:, None], lengths, axis=0)
    unbiased = len(values) / max(len(values) - len(rows), 1)
    controls = [np.stack([cells.control_mean(name)[columns] for name in some]) for some in (names, tests)]
    population = Population(cells.X[:, columns], np.array(genes), {"control": cells.rows("control")})
    return Task(
        tuple(genes), tuple(names), means, controls[0], tuple(cells.n_cells(name) for name in names),
        (around**2).mean(0) * unbiased, tuple(tests), cells.means(tests).to_numpy()[:, columns], controls[1],
        tuple(cells.n_cells(name) for name in tests), population,
    )  # fmt: skip


def shuffled(features: FeatureTable, seed: int, among: Sequence[str]) -> FeatureTable:
    """The features with those of the targets `among` handed to one another."""
    known = [name for name in among if name in features]
    order = numpy_rng(seed, "shuffled features").permutation(len(known))
    return FeatureTable(
        tuple(known), features.restricted(known).values[order], f"shuffled {features.kind}",
        tuple(part._replace(kind=f"shuffled {part.kind}") for part in features.parts),
    )  # fmt: skip


def interval(values: np.ndarray) -> str:
    """Mean and 95% interval by Student's t."""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return f"{values.mean():.3f}" if len(values) else "–"
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.3f} ({values.mean() - half:.3f} to {values.mean() + half:.3f})"


def table(found: list[dict[str, float]], against: str) -> list[str]:
    """A row for each contender: mean over draws, and its gain over that of `against`, draw by draw."""
    lines = [f"| | L2 | gain over {against} |", "|---|---:|---:|"]
    for name in found[0]:
        values = np.array([row[name] for row in found])
        gains = np.array([row[against] - row[name] for row in found])
        lines.append(
            f"| {name} | {np.nanmean(values):.3f} | {'' if name == against else interval(gains)} |"
            if np.isfinite(values).any()
            else f"| {name} | – | |"
        )
    return lines


def known_of_genes(data: Path, names: Sequence[str]) -> FeatureTable:
    """GO with its parents, by the names of a screen."""
    files = [str(data / f"{name}.tsv.gz") for name in ("go_human_annotations", "go_parents", "human_gene_names")]
    return read(f"go:{','.join(files)}", names=names)


def weights(prior: EffectPrior) -> str:
    """The weights that features got."""
    found = {name: weight for name, weight in prior.weights.terms.items() if ":" in name}
    return ", ".join(f"{name.partition(': ')[2]} {weight:g}" for name, weight in found.items()) or "none"


def norman_like(args: argparse.Namespace) -> Iterator[str]:
    """12 unseen targets, singles and doubles apart."""
    cells = scdfm.read_cells(args.screen)
    parts: dict[str, list[dict[str, float]]] = {"singles": [], "doubles": []}
    said, seconds, surprises = [], [], dict[str, list[tuple[np.ndarray, np.ndarray]]]()
    for draw in range(args.draws):
        split = unseen_targets(cells, draw)
        genes = select_genes(cells, split, scdfm.Config().updated(NARROW).panel).genes
        one = task(cells, [*split.train, *split.validation], split.test, genes)
        everyone = every_target((*one.names, *one.tests))
        go = known_of_genes(args.data, [*everyone, *genes])
        other = shuffled(go, draw, everyone)
        start = time.perf_counter()
        priors = {
            "no features": one.prior(None), "GO": one.prior(go), "GO of other genes": one.prior(other),
            "both": one.prior(combine([go, other])), "no features, no sizes": one.prior(None, sized=False),
            "GO, no sizes": one.prior(go, sized=False),
        }  # fmt: skip
        seconds.append((time.perf_counter() - start) / len(priors))
        said.append("; ".join(f"{name}: {weights(prior)}" for name, prior in priors.items()))
        rows = {name: one.predicted(prior) for name, prior in priors.items()} | one.rules()
        several = np.array(["+" in name for name in one.tests])
        for name in ("no features", "no features, no sizes", "GO", "GO, no sizes"):
            real, expected = one.surprise(priors[name])
            surprises.setdefault(f"{name}, singles", []).append((real[~several], expected[~several]))
            surprises.setdefault(f"{name}, doubles", []).append((real[several], expected[several]))
        for part, here in (("singles", ~several), ("doubles", several)):
            parts[part].append({name: _mean(values[here]) for name, values in rows.items()})
    for part, found in parts.items():
        yield f"\n**{part}**, {args.draws} draws\n"
        yield from table(found, "no features")
    yield f"\n{covered(surprises)}"
    yield f"\n{np.mean(seconds):.1f} s a prior. Weights: {' | '.join(said)}"


def covered(surprises: dict[str, list[tuple[np.ndarray, np.ndarray]]]) -> str:
    """Whether uncertainty covers the errors: squared errors over those expected, 1 where it is right on average, and
    Spearman's correlation of both, which says whether it tells large errors from small ones."""
    shares = []
    for name, pairs in surprises.items():
        real, expected = (np.concatenate(column) for column in zip(*pairs, strict=True))
        shares.append(f"{name} {real.sum() / expected.sum():.2f} ({spearmanr(real, expected).statistic:.2f})")
    return f"Squared errors over those that uncertainty expects, and Spearman's of both: {'; '.join(shares)}."


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def norman(args: argparse.Namespace) -> Iterator[str]:
    """Norman's 104 measured singles (log fold changes), each left out; doubles take no part."""
    found = np.load(args.data / "norman_effects.npz")
    shifts, names = found["lfc_s"].astype(np.float64), [str(name) for name in found["sing_labels"]]
    genes = [str(gene) for gene in found["genes_hvg"]]
    go = known_of_genes(args.data, [*names, *genes])
    variants = {"no features": None, "GO": go, "GO of other genes": shuffled(go, 0, names)}
    asked = list(range(0, len(names), args.every))
    errors: Rows = {name: np.zeros(len(asked)) for name in ("mean of the others", *variants)}
    for at, out in enumerate(asked):
        target = names[out]
        kept = [row for row in range(len(names)) if row != out]
        mean = shifts[kept].mean(0)
        errors["mean of the others"][at] = np.linalg.norm(shifts[out] - mean)
        for name, features in variants.items():
            rows = None
            if features is not None:
                known = [names[row] for row in kept if names[row] in features]
                rows = features.standardiser(known)(features).rows_of()
            given = [names[row] for row in kept]
            # How many cells stand behind a fold change is not in the file: noise is left to the likelihood.
            prior = learn_prior(given, shifts[kept], [100] * len(kept), np.ones(len(genes)), genes, rows).prior
            expected = prior.knowing([target], rows).predict([target])[0]
            errors[name][at] = np.linalg.norm(shifts[out] - expected)
    mean_error = errors["mean of the others"]
    yield f"\n{len(asked)} of {len(names)} targets × {len(genes)} genes\n"
    yield "| | error | gain over the mean of the others | gain over no features |"
    yield "|---|---:|---:|---:|"
    for name, values in errors.items():
        gains = [interval(other - values) for other in (mean_error, errors["no features"])]
        yield f"| {name} | {values.mean():.3f} | {gains[0]} | {gains[1]} |"


def papalexi(args: argparse.Namespace) -> Iterator[str]:
    """Five draws of 5 of the 25 knock-outs, each left out once; sizes of responses."""
    cells = scdfm.read_cells(args.data / "papalexi.h5ad", target_sum=10_000)
    names = sorted(name for name in cells.conditions if name != "control")
    order = numpy_rng(0, "papalexi").permutation(names).tolist()
    genes = cells.genes.tolist()
    go = known_of_genes(args.data, [*names, *genes])
    rows: list[dict[str, np.ndarray]] = []
    sizes: dict[str, list[float]] = {"real": [], "no features": [], "GO": []}
    surprises: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"no features": [], "GO": []}
    for draw in range(5):
        tests = sorted(order[5 * draw : 5 * draw + 5])
        one = task(cells, [name for name in names if name not in tests], tests, genes)
        priors = {
            "no features": one.prior(None), "GO": one.prior(go), "GO of other genes": one.prior(shuffled(go, draw, names))
        }  # fmt: skip
        rows.append({name: one.predicted(prior) for name, prior in priors.items()} | one.rules())
        sizes["real"] += np.linalg.norm(one.real - one.test_controls, axis=1).tolist()
        for name in ("no features", "GO"):
            surprises[name].append(one.surprise(priors[name]))
            sizes[name] += np.linalg.norm(priors[name].predict(tests), axis=1).tolist()
        told = f"weights of GO: {weights(priors['GO'])}; typical size {priors['GO'].sizes.typical}"
        yield f"draw {draw}: {', '.join(tests)}; {told}  "
    yield "\nOver the 25 targets, intervals too:\n"
    yield "| | targets it knows | L2 of these | gain over no change | gain over the training mean |"
    yield "|---|---:|---:|---:|---:|"
    for name in rows[0]:
        values = np.concatenate([row[name] for row in rows])
        others = [np.concatenate([row[rule] for row in rows]) for rule in ("no change", "training mean")]
        if np.isfinite(values).any():
            here = np.isfinite(values)
            yield (
                f"| {name} | {here.sum()} | {values[here].mean():.3f} | "
                + " | ".join(interval((other - values)[here]) for other in others)
                + " |"
            )
    for name in ("no features", "GO"):
        found = spearmanr(sizes[name], sizes["real"])
        yield f"\nSpearman of expected and real size, {name}: {found.statistic:.2f} (p {found.pvalue:.2f})"
    yield f"\n{covered(surprises)}"


def drugs(cells: scdfm.CellTable, smiles: dict[str, str], draws: int, held: int) -> list[dict[str, float]]:
    """L2 where `held` drugs are left out at every dose, with and without their structure."""
    names = [name for name in cells.conditions if targets(name)]
    everyone = [drug for drug in every_target(names) if drug in smiles]
    features = morgan({drug: smiles[drug] for drug in everyone})
    found = []
    for draw in range(draws):
        out = set(numpy_rng(draw, "drugs").choice(everyone, held, replace=False).tolist())
        tests = [name for name in names if targets(name)[0] in out]
        one = task(cells, [name for name in names if targets(name)[0] not in out], tests, cells.genes.tolist())
        priors = {
            "no features": one.prior(None), "structure": one.prior(features),
            "structure of other drugs": one.prior(shuffled(features, draw, everyone)),
        }  # fmt: skip
        rows = {name: one.predicted(prior) for name, prior in priors.items()} | one.rules()
        found.append({name: _mean(values) for name, values in rows.items()})
        print(f"draw {draw}: {weights(priors['structure'])}", file=sys.stderr)
    return found


def ljp005(args: argparse.Namespace) -> Iterator[str]:
    """59 drugs at six doses: doses left out (a sixth, never a drug's lowest or highest), and drugs left out."""
    cells, smiles = l1000(args.data / "ljp005_A375_59drugs_6doses.h5ad", perturbation_key="drug", dose_key="dose")
    names = [name for name in cells.conditions if targets(name)]
    rows = []
    for draw in range(args.draws):
        doses: dict[str, list[tuple[float, str]]] = {}
        for name in names:
            doses.setdefault(targets(name)[0], []).append((float(name.partition("@")[2]), name))
        rng = numpy_rng(draw, "doses")
        tests = [sorted(some)[1 + int(rng.integers(len(some) - 2))][1] for some in doses.values() if len(some) > 2]
        one = task(cells, [name for name in names if name not in set(tests)], tests, cells.genes.tolist())
        found = {"prior": one.predicted(one.prior(None))} | one.rules() | {"interpolation": _interpolated(one)}
        rows.append({name: _mean(values) for name, values in found.items()})
    yield f"\n**doses left out**, {args.draws} draws\n"
    yield from table(rows, "prior")
    yield f"\n**12 drugs left out at every dose**, {args.draws} draws\n"
    yield from table(drugs(cells, smiles, args.draws, 12), "no features")


def _interpolated(one: Task) -> np.ndarray:
    """L2 of the mean between the nearest lower and higher measured dose, in log dose."""
    known: dict[str, list[tuple[float, int]]] = {}
    for row, name in enumerate(one.names):
        known.setdefault(targets(name)[0], []).append((np.log(float(name.partition("@")[2])), row))
    means = []
    for name in one.tests:
        at, some = np.log(float(name.partition("@")[2])), sorted(known[targets(name)[0]])
        (below, low), (above, high) = [x for x in some if x[0] < at][-1], next(x for x in some if x[0] > at)
        share = (at - below) / (above - below)
        means.append((1 - share) * one.means[low] + share * one.means[high])
    return one.errors(np.array(means))


def ht115(args: argparse.Namespace) -> Iterator[str]:
    """349 drugs on one plate: the negative control."""
    cells, smiles = l1000(args.data / "prnet_l1000_HT115_349drugs.h5ad", perturbation_key="condition")
    yield f"\n**50 drugs left out**, {args.draws} draws\n"
    yield from table(drugs(cells, smiles, args.draws, 50), "no features")


def l1000(path: Path, **columns: Any) -> tuple[scdfm.CellTable, dict[str, str]]:
    """Wells as cells (log2 intensities, taken as log values of an unknown total), and SMILES by drug."""
    adata = ad.read_h5ad(path)
    key, smiles = columns["perturbation_key"], adata.obs["SMILES"].astype(str)
    known = dict(zip(adata.obs[key].astype(str)[::-1], smiles[::-1], strict=True))
    cells = scdfm.read_cells(adata, control="DMSO", values="log1p", **columns)
    return cells, {name: text for name, text in known.items() if text not in ("", "nan")}


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "norman-like": norman_like, "norman": norman, "papalexi": papalexi, "ljp005": ljp005, "ht115": ht115,
}  # fmt: skip


def main() -> None:
    """Print one section for each part."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("screen", type=Path)
    options.add_argument("data", type=Path)
    options.add_argument("--parts", default=",".join(PARTS))
    options.add_argument("--draws", type=int, default=8)
    options.add_argument("--every", type=int, default=1, help="norman: leave out each of so many targets.")
    args = options.parse_args()
    for name in args.parts.split(","):
        print(f"\n## {name}\n\n{(PARTS[name].__doc__ or '').strip()}\n", flush=True)
        for line in PARTS[name](args):
            print(line, flush=True)


if __name__ == "__main__":
    main()
