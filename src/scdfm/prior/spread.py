"""How cells differ around the mean of their condition: the marginals of genes, and the scores of real training cells."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scdfm.data.conditions import SCREEN, covariates
from scdfm.errors import RunError
from scdfm.files import written_whole
from scdfm.prior.kernel import Floats
from scdfm.prior.marginals import N_KNOTS, Levels

SMALLEST = 0.02
"""Least deviation of a gene, in root mean squares: silent genes keep a weight."""
MOST_DONORS = 2000
LEAST_DONORS = 20
"""Donors that a setting of the covariates needs to be started from alone."""
LEAST_SEEN = 5
"""Cells above 0 that tell the values of a gene in a setting."""
JUDGED_GENES = 300
"""Genes that say how far a setting's marginals are its own."""
FEWEST_JUDGED = 8
"""Cells without which nothing says how far marginals are a setting's own."""
GROUP_CELLS, MOST_GROUPS = 16, 50
"""Cells of a setting that are judged together, and how many such groups there are at most."""
MOST_LAWS = 16
"""Settings with marginals of their own, those of most cells: each takes 7 MB of a file of 5,000 genes."""


@dataclass(frozen=True, eq=False)
class Spread:
    """Marginals of G genes, and n donors: training cells as scores around the mean of their own condition.

    A population is started by donors: what genes of one cell have in common (its state, its depth) comes along. Per gene
    the donors' scores are standard normal. Donors of one setting (control population) lie together.
    """

    marginals: Levels
    size: float
    """Root mean square deviation of expression (log1p), the unit of `deviation`."""
    deviation: Float[Tensor, " G"]
    """d, of root mean square 1: what a gene weighs in the flow."""
    donors: Float[Tensor, "n G"]
    """Scores, float16."""
    settings: dict[str, tuple[int, int]]
    """First donor and number of donors of each setting."""
    laws: dict[str, Levels] = field(default_factory=dict)
    """Marginals of single screens, by name, where cells of several were given, and of single settings; `marginals` are
    those of all cells."""
    correlation: Float[Tensor, " G"] | None = None
    """Of both ends of a training path; None where pairs are random (`correlation_of_pairs`)."""
    mixed: bool = True
    """Whether marginals of a setting lie between its own and those in common; in a run of before they are its own."""

    def on(self, genes: Tensor | slice) -> Spread:
        """The spread of some genes."""
        return replace(
            self,
            marginals=self.marginals.on(genes),
            laws={name: law.on(genes) for name, law in self.laws.items()},
            deviation=self.deviation[genes],
            donors=self.donors[:, genes],
            correlation=None if self.correlation is None else self.correlation[genes],
        )

    def to(self, device: torch.device | str) -> Spread:
        """The spread on another device."""
        return replace(
            self,
            marginals=self.marginals.to(device),
            laws={name: law.to(device) for name, law in self.laws.items()},
            deviation=self.deviation.to(device),
            donors=self.donors.to(device),
            correlation=None if self.correlation is None else self.correlation.to(device),
        )

    def of(self, settings: Iterable[str]) -> Spread:
        """The spread without the laws that none of these settings has."""
        needed = {name for setting in settings for name in (setting, _screen(setting))}
        return replace(self, laws={name: law for name, law in self.laws.items() if name in needed})

    def donors_of(self, setting: str) -> tuple[int, int]:
        """First donor and number of those that start the conditions of a setting: its own where there are enough."""
        first, count = self.settings.get(setting, (0, 0))
        return (first, count) if count >= LEAST_DONORS else (0, len(self.donors))

    def marginals_of(self, setting: str) -> Levels:
        """The marginals of a setting: its own or its screen's where there are such, else those of all cells."""
        return _law_of(setting, self.laws, self.marginals)

    def at_home(self, controls: Floats, setting: str, rng: torch.Generator) -> Spread:
        """This spread in a setting that training never had, as its `controls` [n, G] (log1p) tell it: they are the donors,
        and its marginals are theirs as far as they differ (`_between`). The units of the flow stay."""
        drawn = torch.randperm(len(controls), generator=rng)[:MOST_DONORS].numpy()
        cells = controls[drawn]
        one = np.zeros(len(cells), dtype=np.int64)
        own = fit_spread(cells, one, cells.mean(0, keepdims=True), [setting], rng)
        basis = self.marginals_of(setting)
        marginals = _between(own.marginals, basis, cells, one) if self.mixed else _of_seen(own.marginals, basis, cells)
        return replace(self, marginals=marginals, laws={}, donors=own.donors, settings=own.settings)

    def save(self, path: Path) -> None:
        """Write the spread as safetensors, whole or not at all."""
        tensors = {"deviation": self.deviation, "donors": self.donors}
        if self.correlation is not None:
            tensors["correlation"] = self.correlation
        for end, levels in zip(("", *_ends(self.laws)), (self.marginals, *self.laws.values()), strict=True):
            tensors |= {f"{name}{end}": value for name, value in levels.tensors().items()}
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        # "screens" are the laws' names: whatever reads runs of before knows them by this word.
        words = {"size": self.size, "settings": self.settings, "screens": list(self.laws), "mixed": self.mixed}
        with written_whole(path, sum(value.nbytes for value in tensors.values())) as temporary:
            save_file(tensors, temporary, metadata={"spread": json.dumps(words)})

    @classmethod
    def load(cls, path: Path, n_genes: int) -> Spread:
        """Read the spread of `save` over `n_genes` genes; RunError where the file is damaged."""
        try:
            with safe_open(path, framework="pt") as handle:
                words = json.loads(handle.metadata()["spread"])
                names = [str(name) for name in words.get("screens", ())]
                there = set(handle.keys())
                marginals, *own = (
                    Levels.loaded(
                        {
                            name: handle.get_tensor(f"{name}{end}")
                            for name in ("means", "zeros", "values")
                            if f"{name}{end}" in there
                        }
                    )
                    for end in ("", *_ends(names))
                )
                deviation, donors = handle.get_tensor("deviation"), handle.get_tensor("donors")
                correlation = handle.get_tensor("correlation") if "correlation" in there else None
            settings = {str(name): (int(a), int(b)) for name, (a, b) in words["settings"].items()}
            laws = dict(zip(names, own, strict=True))
            mixed = bool(words.get("mixed", False))
            spread = cls(marginals, float(words["size"]), deviation, donors, settings, laws, correlation, mixed)
            spread._check(n_genes)
            return spread
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{path} cannot be read as the spread of cells ({error}); restore it or fit again"
            ) from error

    def _check(self, n_genes: int) -> None:
        """ValueError unless every tensor has the shape of `n_genes` genes, and values that a spread has."""
        n, laws = len(self.donors), (self.marginals, *self.laws.values())
        shapes = {"deviation": (self.deviation, (n_genes,)), "donors": (self.donors, (max(n, 1), n_genes))}
        if self.correlation is not None:
            shapes["correlation"] = (self.correlation, (n_genes,))
        for end, law in zip(("", *_ends(self.laws)), laws, strict=True):
            levels = (len(law.means), n_genes)
            shapes |= {f"means{end}": (law.means, levels), f"zeros{end}": (law.zeros, levels)}
            shapes |= {f"values{end}": (law.values, (*levels, N_KNOTS))}
        for name, (tensor, shape) in shapes.items():
            kind = torch.float16 if name == "donors" else torch.float32
            if tuple(tensor.shape) != shape or tensor.dtype != kind or not tensor.isfinite().all():
                raise ValueError(
                    f"'{name}' is {tensor.dtype} {list(tensor.shape)}, expected {kind} {list(shape)}, finite"
                )
        for law in laws:
            if not ((law.zeros >= 0) & (law.zeros < 1)).all() or not (law.values.diff(dim=2) >= 0).all():
                raise ValueError("'zeros' or 'values' are those of no distribution")
            if not (law.means.diff(dim=0) >= 0).all():
                raise ValueError("'means' of levels do not rise")
        if not (self.size > 0 and (self.deviation > 0).all()):
            raise ValueError("'size' or 'deviation' is not above 0")
        if self.correlation is not None and not (self.correlation.abs() < 1).all():
            raise ValueError("'correlation' is not between −1 and 1")
        if any(a < 0 or b < 0 or a + b > n for a, b in self.settings.values()):
            raise ValueError("'settings' lead beyond the donors")


def fit_spread(
    cells: Floats, conditions: npt.NDArray[np.int64], means: Floats, settings: Sequence[str], rng: torch.Generator
) -> Spread:
    """The spread of `cells` [n, G] (log1p), row i of condition `conditions[i]`; NaN where a cell's screen has no such gene.

    means [C, G] and `settings` [C]: mean of each condition, and the name of its control population. `rng` draws what
    stands behind zeros, and the donors.
    """
    variances = variances_around(cells, means[conditions])
    size = float(np.sqrt(variances.mean())) or 1.0
    deviation = np.maximum(np.sqrt(variances) / size, SMALLEST)
    drawn = torch.randperm(len(cells), generator=rng)[:MOST_DONORS].numpy()
    places = {name: place for place, name in enumerate(dict.fromkeys(settings))}
    own = np.array([places[settings[condition]] for condition in conditions[drawn]])
    order = np.argsort(own, kind="stable")
    drawn, own = drawn[order], own[order]
    counts = np.bincount(own, minlength=len(places))
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    marginals = Levels.fitted(cells, conditions, means)
    enough = {name for name, place in places.items() if counts[place] >= LEAST_DONORS}
    laws = _laws(cells, conditions, means, settings, marginals, enough)
    uniform = torch.rand((len(drawn), cells.shape[1]), generator=rng)
    donors = torch.empty(uniform.shape, dtype=torch.float16)
    of_law = [_law_of(name, laws, marginals) for name in places]
    # By law, not by setting: two donors alone would have the same two scores in every gene.
    for law in dict.fromkeys(of_law):
        mine = np.flatnonzero(np.isin(own, [place for place, other in enumerate(of_law) if other is law]))
        if len(mine):
            present, of = np.unique(conditions[drawn[mine]], return_inverse=True)
            values, around = torch.from_numpy(cells[drawn[mine]].astype(np.float32)), torch.from_numpy(means[present])
            donors[mine] = normal_scores(law.scores(values, around, of, uniform[mine])).half()
    _lend(donors, torch.from_numpy(np.isnan(cells[drawn])), rng)
    ranges = {name: (int(first[place]), int(counts[place])) for name, place in places.items()}
    return Spread(marginals, size, torch.from_numpy(deviation.astype(np.float32)), donors, ranges, laws)


def variances_around(cells: Floats, means: Floats) -> Floats:
    """Mean square [G] of what cells [n, G] are off `means` [n, G], over the cells that measured the gene."""
    squared = (cells - means) ** 2
    return np.asarray(np.nanmean(squared, axis=0) if np.isnan(squared).any() else squared.mean(0))


def _lend(donors: Tensor, missing: Tensor, rng: torch.Generator) -> None:
    """Give donors [n, G] scores of genes that are `missing` in them: those of donors, drawn at random, that have them.

    Genes of one lender go together; a gene that no donor has is standard normal.
    """
    if not missing.any():
        return
    for lacking in torch.unique(missing, dim=1).T:
        genes = torch.nonzero((missing == lacking[:, None]).all(0)).flatten()
        borrowers, lenders = torch.nonzero(lacking).flatten(), torch.nonzero(~lacking).flatten()
        if len(lenders):
            drawn = lenders[torch.randint(len(lenders), (len(borrowers),), generator=rng)]
            donors[borrowers[:, None], genes] = donors[drawn[:, None], genes]
        else:
            donors[:, genes] = torch.randn((len(donors), len(genes)), generator=rng).to(donors.dtype)


def _law_of(setting: str, laws: dict[str, Levels], common: Levels) -> Levels:
    """The marginals of a setting: its own or its screen's where there are such, else those in common."""
    for name in (setting, _screen(setting)):
        if name in laws:
            return laws[name]
    return common


def _screen(setting: str) -> str:
    return covariates(setting).get(SCREEN, "")


def _laws(
    cells: Floats,
    conditions: npt.NDArray[np.int64],
    means: Floats,
    settings: Sequence[str],
    common: Levels,
    enough: set[str],
) -> dict[str, Levels]:
    """Marginals of each screen by its cells [n, G], where there are several, and of settings beside others in it.

    They lie between those of the group's own cells and the `basis` (`_between`): those of all cells, of a setting those of
    its screen. The MOST_LAWS settings that have most cells have them, of those with `enough` donors.
    """

    def of(group: npt.NDArray[np.bool_], basis: Levels) -> Levels:
        present, places = np.unique(conditions[group], return_inverse=True)
        return _between(Levels.fitted(cells[group], places, means[present]), basis, cells[group], places)

    laws: dict[str, Levels] = {}
    screens, names = np.array([_screen(setting) for setting in settings])[conditions], np.array(settings)[conditions]
    for name in np.unique(screens) if len(np.unique(screens)) > 1 else ():
        laws[str(name)] = of(screens == name, common)
    found, counts = np.unique(names, return_counts=True)
    for place in np.argsort(-counts, kind="stable")[:MOST_LAWS]:
        setting, several = str(found[place]), (screens == _screen(str(found[place]))).sum() > counts[place]
        if setting in enough and several:
            laws[setting] = of(names == setting, _law_of(setting, laws, common))
    return laws


def _between(own: Levels, basis: Levels, cells: Floats, conditions: npt.NDArray[np.int64]) -> Levels:
    """The marginals of a setting with the `cells` [n, G]: `basis`, which more cells tell, and as much of its `own` as
    `_share_of_own` says; those of `basis` of genes that are not seen in it."""
    genes = np.linspace(0, cells.shape[1] - 1, min(cells.shape[1], JUDGED_GENES)).astype(np.int64)
    share = _share_of_own(cells[:, genes], conditions, basis.on(torch.from_numpy(genes)))
    return _of_seen(basis.towards(own, share), basis, cells)


def _share_of_own(cells: Floats, conditions: npt.NDArray[np.int64], basis: Levels) -> float:
    """How far the marginals of a setting are its own, 0 to 1, by its cells [n, G]: least squares.

    Each half of the cells of a condition tells the setting's marginals, s, and is judged by the other half; conditions of
    few cells are taken together. With r the sorted values of the other half, and p those that `basis` has there at the
    same mean, w minimises Σ (r − p − w(s − p))².
    """
    if len(cells) < FEWEST_JUDGED:
        return 0.0
    present, places = np.unique(conditions, return_inverse=True)
    n_groups = int(np.clip(len(cells) // GROUP_CELLS, 1, min(len(present), MOST_GROUPS)))
    places = places * n_groups // len(present)
    order = np.argsort(places, kind="stable")
    first = np.searchsorted(places[order], places[order])
    half = np.empty(len(cells), dtype=bool)
    half[order] = (np.arange(len(cells)) - first) % 2 == 0
    product = square = 0.0
    for told, judged in ((half, ~half), (~half, half)):
        present, of = np.unique(places[told], return_inverse=True)
        centres = np.stack([cells[told][of == place].mean(0) for place in range(len(present))])
        own = _of_seen(Levels.fitted(cells[told], of, centres), basis, cells[told])
        for place in np.unique(places[judged]):
            real = torch.from_numpy(np.sort(cells[judged & (places == place)], axis=0)).float().nan_to_num()
            common, mine = (law.ordered(real.mean(0), len(real)) for law in (basis, own))
            product += float(((real - common) * (mine - common)).sum())
            square += float(((mine - common) ** 2).sum())
    return float(np.clip(product / square, 0, 1)) if square else 0.0


def _of_seen(own: Levels, common: Levels, cells: Floats) -> Levels:
    """The marginals `own` of genes that LEAST_SEEN of the cells [n, G] hold; those in common of the others."""
    seen = torch.from_numpy((cells > 0).sum(0) >= LEAST_SEEN)
    return own.where(seen, common)


def _ends(laws: Iterable[str]) -> list[str]:
    """How the names of the arrays of single marginals end in a file."""
    return [f".{place}" for place, _ in enumerate(laws)]


def normal_scores(values: Float[Tensor, "n G"], inside: Float[Tensor, "n G"] | None = None) -> Tensor:
    """Each column's values replaced by standard normal numbers in the same order, one from each of n equal pieces.

    inside: where in its piece each number lies, in [0, 1); the middle unless given.
    """
    order = values.T.contiguous().argsort(dim=1, stable=True)  # rows lie together in memory, columns do not
    places = torch.arange(len(values), device=values.device).expand_as(order)
    ranks = torch.empty_like(order).scatter_(1, order, places).T
    share = (ranks.double() + (0.5 if inside is None else inside.double())) / len(values)
    scores: Tensor = torch.special.ndtri(share.clamp(min=1e-9, max=1 - 1e-9))
    return scores.float()
