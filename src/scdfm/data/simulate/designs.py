"""Simulated screens whose truth is known: combinations, dose–response curves, drugs with features, several cell types.

A target shifts the activity of a few programs that it shares with other targets, and its own expression. What
several targets do together follows from their program activities alone, so that unseen combinations can be predicted
from singles and other combinations, though not by adding up. Each drug's effect follows a Hill curve of its own, which is
stored; what a drug does is a smooth function of its features; a perturbation does to all cell types partly the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pandas as pd

from scdfm.data.conditions import CONTROL, Condition, Perturbation, canonical, targets
from scdfm.data.simulate.screen import (
    Float,
    Measurement,
    Population,
    base_rates,
    common_bounds,
    gene_names,
    gene_programs,
    measured,
    require,
)
from scdfm.errors import DataError
from scdfm.seeds import numpy_rng

if TYPE_CHECKING:
    from anndata import AnnData


def hill(dose: float | Float, ec50: float | Float, slope: float | Float) -> Float:
    """The share dose^h / (EC50^h + dose^h) of the full effect: 0 without drug, ½ at the dose EC50."""
    dose = np.asarray(dose, dtype=np.float64)
    return np.asarray(dose**slope / (np.asarray(ec50) ** slope + dose**slope))


def simulate_doses(
    n_genes: int = 100,
    n_drugs: int = 6,
    n_doses: int = 7,
    cells_per_condition: int = 60,
    n_controls: int = 400,
    responders: float = 1.0,
    depth: float = 1000.0,
    dropout: float = 0.3,
    n_programs: int = 5,
    truth_cells: int = 1000,
    seed: int = 0,
) -> AnnData:
    """Simulate drugs at `n_doses` doses each, evenly spaced in log dose from 0.01 to 10, with controls.

    A drug at dose d shifts log expression by hill(d; EC50, slope) times its full effect, a sum of gene programs. EC50
    is drawn log-uniformly from 0.05 to 2, the slope from 1 to 2.5. Returned as by `simulate`, with obs["drug"],
    obs["dose"] (0 in controls), uns["true_means"] by condition (`drug1@0.1`), uns["true_curves"] (drug × ec50, slope) and
    uns["true_effects"] (drug × gene: log fold change at full effect). Same arguments, same bits.
    """
    options = dict(locals())
    require(options, {"n_drugs": (1, math.inf), "n_doses": (2, math.inf)} | common_bounds())
    rng = numpy_rng(seed, "simulate doses", "truth")
    programs, base = gene_programs(rng, n_programs, n_genes), base_rates(rng, n_genes)
    drugs = [f"drug{number}" for number in range(1, n_drugs + 1)]
    activity = rng.uniform(0.6, 1.4, (n_drugs, n_programs)) * rng.choice([-1, 0, 1], (n_drugs, n_programs))
    activity[np.arange(n_drugs), rng.integers(n_programs, size=n_drugs)] = 1.4  # none is without effect
    effects = activity @ programs
    ec50 = np.exp(rng.uniform(np.log(0.05), np.log(2.0), n_drugs))
    slope = rng.uniform(1.0, 2.5, n_drugs)
    doses = [float(f"{dose:.3g}") for dose in np.geomspace(0.01, 10.0, n_doses)]
    populations = [
        Population(CONTROL, {"drug": CONTROL, "dose": 0.0}, n_controls, base, np.zeros(n_genes)),
        *(
            Population(
                str(Condition((Perturbation(drug, dose),))),
                {"drug": drug, "dose": dose},
                cells_per_condition,
                base,
                hill(dose, ec50[place], slope[place]) * effects[place],
            )
            for place, drug in enumerate(drugs)
            for dose in doses
        ),
    ]
    genes = gene_names(n_genes)
    adata = measured(populations, Measurement(programs, responders, depth, dropout, seed), genes, truth_cells)
    adata.uns["true_curves"] = pd.DataFrame({"ec50": ec50, "slope": slope}, index=drugs)
    adata.uns["true_effects"] = pd.DataFrame(effects, index=drugs, columns=genes)
    adata.uns["simulation"] = options
    return adata


def simulate_drugs(
    n_genes: int = 100,
    n_drugs: int = 40,
    n_features: int = 4,
    shuffled: bool = False,
    cells_per_condition: int = 40,
    n_controls: int = 400,
    responders: float = 1.0,
    depth: float = 1000.0,
    dropout: float = 0.3,
    n_programs: int = 5,
    truth_cells: int = 1000,
    seed: int = 0,
) -> AnnData:
    """Simulate drugs, with controls, whose program activity is 1.5·tanh(z·W) of their features z ~ N(0, I).

    shuffled: the features are handed to other drugs, so that they say nothing; cells and effects stay the same bits.

    Returned as by `simulate`, with obs["drug"], uns["features"] (drug × feature, for `features.table`) and
    uns["true_effects"] (drug × gene: log fold change). Same arguments, same bits.
    """
    options = dict(locals())
    require(options, {"n_drugs": (2, math.inf), "n_features": (1, math.inf)} | common_bounds())
    rng = numpy_rng(seed, "simulate drugs", "truth")
    programs, base = gene_programs(rng, n_programs, n_genes), base_rates(rng, n_genes)
    width = len(str(n_drugs))
    drugs = [f"drug{number:0{width}d}" for number in range(1, n_drugs + 1)]
    features = rng.standard_normal((n_drugs, n_features))
    weights = rng.standard_normal((n_features, n_programs)) / np.sqrt(n_features)
    effects = 1.5 * np.tanh(features @ weights) @ programs
    populations = [
        Population(CONTROL, {"drug": CONTROL}, n_controls, base, np.zeros(n_genes)),
        *(
            Population(drug, {"drug": drug}, cells_per_condition, base, effect)
            for drug, effect in zip(drugs, effects, strict=True)
        ),
    ]
    genes = gene_names(n_genes)
    adata = measured(populations, Measurement(programs, responders, depth, dropout, seed), genes, truth_cells)
    if shuffled:
        # One place on in a random circle: no drug keeps its own.
        circle = numpy_rng(seed, "simulate drugs", "shuffle").permutation(n_drugs)
        features[circle] = features[np.roll(circle, 1)]
    columns = [f"feature{number}" for number in range(1, n_features + 1)]
    adata.uns["features"] = pd.DataFrame(features, index=drugs, columns=columns)
    adata.uns["true_effects"] = pd.DataFrame(effects, index=drugs, columns=genes)
    adata.uns["simulation"] = options
    return adata


_TYPE_SPREAD: Final = 0.8  # spread between cell types of a gene's log rate


def simulate_cell_types(
    n_genes: int = 100,
    n_targets: int = 8,
    n_types: int = 4,
    shared: float = 0.8,
    cells_per_condition: int = 40,
    n_controls: int = 100,
    responders: float = 1.0,
    depth: float = 1000.0,
    dropout: float = 0.3,
    n_programs: int = 5,
    truth_cells: int = 1000,
    seed: int = 0,
) -> AnnData:
    """Simulate every target in every cell type, with `n_controls` controls of each type.

    A cell type has expression of its own. A target's program activity in a type is √shared · a + √(1 − shared) · b,
    with a of the target in all types and b of the target in this type, both N(0, I): `shared` is the share of
    variance in common.

    Returned as by `simulate`, with obs["perturbation"], obs["cell_type"], uns["true_means"] by condition
    (`G001|cell_type=type1`, `control|cell_type=type1`) and uns["true_effects"] (condition × gene: log fold change). Same
    arguments, same bits.
    """
    options = dict(locals())
    bounds = common_bounds() | {"n_targets": (1, n_genes), "n_types": (1, math.inf), "shared": (0, 1)}
    require(options, bounds)
    rng = numpy_rng(seed, "simulate cell types", "truth")
    programs, base = gene_programs(rng, n_programs, n_genes), base_rates(rng, n_genes)
    genes = gene_names(n_genes)
    targets = sorted(genes[place] for place in rng.choice(n_genes, n_targets, replace=False))
    common = rng.standard_normal((n_targets, n_programs))
    populations = []
    for number in range(1, n_types + 1):
        name = f"type{number}"
        own_base = base + _TYPE_SPREAD * rng.standard_normal(n_genes)
        own = rng.standard_normal((n_targets, n_programs))
        activity = np.sqrt(shared) * common + np.sqrt(1 - shared) * own
        for target, shift in zip((CONTROL, *targets), (np.zeros(n_genes), *(activity @ programs)), strict=True):
            done = () if target == CONTROL else (Perturbation(target),)
            populations.append(
                Population(
                    str(Condition(done, (("cell_type", name),))),
                    {"perturbation": target, "cell_type": name},
                    cells_per_condition if done else n_controls,
                    own_base,
                    np.asarray(shift),
                )
            )
    adata = measured(populations, Measurement(programs, responders, depth, dropout, seed), genes, truth_cells)
    adata.var["target"] = np.isin(genes, targets)
    adata.uns["true_effects"] = pd.DataFrame(
        [part.shift for part in populations], index=[part.name for part in populations], columns=genes
    )
    adata.uns["simulation"] = options
    return adata


INTERACTIONS: Final = {"none": 0.0, "strong": 1.0}
_OWN_EFFECT: Final = 1.5  # log fold change of a target's own expression (activation)


@dataclass(frozen=True)
class _Options:
    """The options of `simulate`, refused where they cannot be."""

    n_genes: int
    n_targets: int
    n_doubles: int
    n_triples: int
    cells_per_condition: int
    n_controls: int
    interaction: float
    responders: float
    depth: float
    dropout: float
    n_programs: int
    truth_cells: int
    seed: int

    def __post_init__(self) -> None:
        kinds = max(self.n_targets, 0)
        require(
            vars(self),
            {
                "n_targets": (2, math.inf), "n_genes": (self.n_targets, math.inf),
                "n_doubles": (0, math.comb(kinds, 2)), "n_triples": (0, math.comb(kinds, 3)), "interaction": (0, 10),
            }
            | {name: bounds for name, bounds in common_bounds().items() if name != "n_genes"},
        )  # fmt: skip


@dataclass(frozen=True)
class _Truth:
    """Parameters of one simulated screen; R programs, K targets, G genes."""

    programs: Float  # [R, G] log fold change of a gene per unit of activity
    activity: Float  # [K, R] of each target alone
    place: dict[str, int]  # target -> its row in `activity`
    column: dict[str, int]  # target -> its gene
    base: Float  # [G] log rate of a gene in an untreated cell
    options: _Options

    def joint_activity(self, condition: str) -> Float:
        """Program activity [R] of a condition of any number of targets.

        With interaction κ, for each pair with activities a and b: programs that both drive the same way are
        shared, not added (−κ·min, redundancy); the first two programs work together on the last, which no
        target drives alone (+κ·(a₀b₁ + a₁b₀), synergy); and drive of program 2 masks the partner's drive of
        program 3 (·(1 − κ·min(1, |b₂|)), epistasis).
        """
        members = self.activity[[self.place[name] for name in targets(condition)]].copy()
        alone = members.copy()
        kappa = self.options.interaction
        for i, j in ((i, j) for i in range(len(alone)) for j in range(len(alone)) if i != j):
            members[i, 3] *= max(0.0, 1.0 - kappa * min(1.0, abs(alone[j, 2])))
        total = members.sum(axis=0)
        for i, j in combinations(range(len(alone)), 2):
            a, b = members[i], members[j]
            total -= kappa * np.where(a * b > 0, np.sign(a) * np.minimum(abs(a), abs(b)), 0.0)
            total[-1] += kappa * (alone[i, 0] * alone[j, 1] + alone[i, 1] * alone[j, 0])
        return np.asarray(total)

    def shift(self, condition: str) -> Float:
        """Log fold change [G] of a cell that responds with strength 1."""
        if condition == CONTROL:
            return np.zeros(len(self.base))
        shift = self.joint_activity(condition) @ self.programs
        shift[[self.column[name] for name in targets(condition)]] += _OWN_EFFECT
        return np.asarray(shift)


def simulate(
    n_genes: int = 200,
    n_targets: int = 12,
    n_doubles: int | None = None,
    cells_per_condition: int = 100,
    n_controls: int = 400,
    interaction: Literal["strong", "none"] | float = "strong",
    responders: float = 0.8,
    depth: float = 1000.0,
    dropout: float = 0.3,
    n_programs: int = 5,
    truth_cells: int = 1000,
    seed: int = 0,
    n_triples: int = 0,
) -> AnnData:
    """Simulate a screen of every single, of `n_doubles` pairs (default: 60% of them) and of `n_triples`, with controls.

    interaction: strength of non-additivity, "none" (log fold changes of a pair add up) or "strong", or a number.
    responders: share of perturbed cells that respond, each with a strength of its own; the others are as control.
    depth: median counts of a cell. dropout: share of zeros added where expression is weak.

    Counts are negative binomial given the cell's rates and library size. Returned: X log1p counts per 10,000
    (float32 CSR), layers["counts"], obs["perturbation"] and obs["responder"], var["program"] and
    var["target"], uns["true_means"] (condition × gene: mean of X over `truth_cells` further cells of each
    condition), uns["true_activity"] (condition × program) and uns["simulation"] (these options). Each
    condition's cells come from a stream of their own. Same arguments, same bits.
    """
    if n_doubles is None and n_targets > 1:
        n_doubles = round(0.6 * math.comb(n_targets, 2))
    kappa = INTERACTIONS.get(interaction) if isinstance(interaction, str) else float(interaction)
    if kappa is None:
        raise DataError(f"simulate: interaction is '{interaction}'; expected 'none', 'strong' or a number from 0")
    options = _Options(
        n_genes, n_targets, n_doubles or 0, n_triples, cells_per_condition, n_controls,
        kappa, responders, depth, dropout, n_programs, truth_cells, seed,
    )  # fmt: skip
    names, target_names, conditions = _design(options)
    truth = _truth(names, target_names, options)
    populations = [
        Population(
            name,
            {"perturbation": name},
            n_controls if name == CONTROL else cells_per_condition,
            truth.base,
            truth.shift(name),
        )
        for name in conditions
    ]
    how = Measurement(truth.programs, responders, depth, dropout, seed)
    adata = measured(populations, how, names, truth_cells)
    adata.var["target"] = np.isin(names, target_names)
    adata.uns["true_activity"] = pd.DataFrame(
        [truth.joint_activity(name) for name in conditions],
        index=list(conditions),
        columns=[f"program{number}" for number in range(n_programs)],
    )
    adata.uns["simulation"] = asdict(options)
    return adata


def _design(options: _Options) -> tuple[list[str], list[str], list[str]]:
    """Gene names, those that are targets, and the measured conditions, control first."""
    names = gene_names(options.n_genes)
    rng = numpy_rng(options.seed, "simulate", "design")
    target_genes = sorted(names[place] for place in rng.choice(options.n_genes, options.n_targets, replace=False))
    pairs = [canonical(f"{a}+{b}") for a, b in combinations(target_genes, 2)]
    doubles = sorted(pairs[place] for place in rng.choice(len(pairs), options.n_doubles, replace=False))
    threes = [canonical("+".join(three)) for three in combinations(target_genes, 3)]
    triples = sorted(threes[place] for place in rng.choice(len(threes), options.n_triples, replace=False))
    return names, target_genes, [CONTROL, *target_genes, *doubles, *triples]


def _truth(names: Sequence[str], target_names: Sequence[str], options: _Options) -> _Truth:
    rng = numpy_rng(options.seed, "simulate", "truth")
    n_programs, n_genes, n_targets = options.n_programs, options.n_genes, options.n_targets
    programs = gene_programs(rng, n_programs, n_genes)
    # Each target drives two of the programs but the last, which only synergy reaches.
    activity = np.zeros((n_targets, n_programs))
    for row in activity:
        driven = rng.choice(n_programs - 1, 2, replace=False)
        row[driven] = rng.uniform(0.6, 1.4, 2) * rng.choice([-1, 1], 2, p=[0.2, 0.8])
    return _Truth(
        programs=programs,
        activity=activity,
        place={name: row for row, name in enumerate(target_names)},
        column={name: list(names).index(name) for name in target_names},
        base=base_rates(rng, n_genes),
        options=options,
    )
