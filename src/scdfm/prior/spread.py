"""How cells differ around the mean of their condition: the marginals of genes, and the scores of real training cells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scdfm.errors import RunError
from scdfm.files import written_whole
from scdfm.prior.kernel import Floats
from scdfm.prior.marginals import N_KNOTS, Marginals

SMALLEST = 0.02
"""Least deviation of a gene, in root mean squares: silent genes keep a weight."""
MOST_DONORS = 2000
LEAST_DONORS = 20
"""Donors that a setting of the covariates needs to be started from alone."""
LEAST_SEEN = 5
"""Cells above 0 that tell the values of a gene in a setting."""


@dataclass(frozen=True, eq=False)
class Spread:
    """Marginals of G genes, and n donors: training cells as scores around the mean of their own condition.

    A population is started by donors: what genes of one cell have in common (its state, its depth) comes along. Per gene
    the donors' scores are standard normal. Donors of one setting (control population) lie together.
    """

    marginals: Marginals
    size: float
    """Root mean square deviation of expression (log1p), the unit of `deviation`."""
    deviation: Float[Tensor, " G"]
    """d, of root mean square 1: what a gene weighs in the flow."""
    donors: Float[Tensor, "n G"]
    """Scores, float16."""
    settings: dict[str, tuple[int, int]]
    """First donor and number of donors of each setting."""

    def on(self, genes: Tensor | slice) -> Spread:
        """The spread of some genes."""
        return replace(
            self,
            marginals=self.marginals.on(genes),
            deviation=self.deviation[genes],
            donors=self.donors[:, genes],
        )

    def to(self, device: torch.device | str) -> Spread:
        """The spread on another device."""
        return replace(
            self,
            marginals=self.marginals.to(device),
            deviation=self.deviation.to(device),
            donors=self.donors.to(device),
        )

    def donors_of(self, setting: str) -> tuple[int, int]:
        """First donor and number of those that start the conditions of a setting: its own where there are enough."""
        first, count = self.settings.get(setting, (0, 0))
        return (first, count) if count >= LEAST_DONORS else (0, len(self.donors))

    def at_home(self, controls: Floats, setting: str, rng: torch.Generator) -> Spread:
        """This spread in a setting that training never had, as its `controls` [n, G] (log1p) tell it: they are the donors,
        and the marginals of genes that LEAST_SEEN of them hold are theirs. The units of the flow stay."""
        drawn = torch.randperm(len(controls), generator=rng)[:MOST_DONORS].numpy()
        cells = controls[drawn]
        one = np.zeros(len(cells), dtype=np.int64)
        own = fit_spread(cells, one, cells.mean(0, keepdims=True), [setting], rng)
        seen = torch.from_numpy((cells > 0).sum(0) >= LEAST_SEEN)
        marginals = Marginals(
            torch.where(seen, own.marginals.zeros, self.marginals.zeros),
            torch.where(seen.unsqueeze(1), own.marginals.values, self.marginals.values),
        )
        return replace(self, marginals=marginals, donors=own.donors, settings=own.settings)

    def save(self, path: Path) -> None:
        """Write the spread as safetensors, whole or not at all."""
        tensors = {
            "zeros": self.marginals.zeros,
            "values": self.marginals.values,
            "deviation": self.deviation,
            "donors": self.donors,
        }
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        words = {"size": self.size, "settings": self.settings}
        with written_whole(path, sum(value.nbytes for value in tensors.values())) as temporary:
            save_file(tensors, temporary, metadata={"spread": json.dumps(words)})

    @classmethod
    def load(cls, path: Path, n_genes: int) -> Spread:
        """Read the spread of `save` over `n_genes` genes; RunError where the file is damaged."""
        try:
            with safe_open(path, framework="pt") as handle:
                words = json.loads(handle.metadata()["spread"])
                found = {name: handle.get_tensor(name) for name in ("zeros", "values", "deviation", "donors")}
            settings = {str(name): (int(a), int(b)) for name, (a, b) in words["settings"].items()}
            marginals = Marginals(found["zeros"], found["values"])
            spread = cls(marginals, float(words["size"]), found["deviation"], found["donors"], settings)
            spread._check(n_genes)
            return spread
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{path} cannot be read as the spread of cells ({error}); restore it or fit again"
            ) from error

    def _check(self, n_genes: int) -> None:
        """ValueError unless every tensor has the shape of `n_genes` genes, and values that a spread has."""
        m, n = self.marginals, len(self.donors)
        shapes = {"zeros": (m.zeros, (n_genes,)), "values": (m.values, (n_genes, N_KNOTS))}
        shapes |= {
            "deviation": (self.deviation, (n_genes,)),
            "donors": (self.donors, (max(n, 1), n_genes)),
        }
        for name, (tensor, shape) in shapes.items():
            kind = torch.float16 if name == "donors" else torch.float32
            if tuple(tensor.shape) != shape or tensor.dtype != kind or not tensor.isfinite().all():
                raise ValueError(
                    f"'{name}' is {tensor.dtype} {list(tensor.shape)}, expected {kind} {list(shape)}, finite"
                )
        if not ((m.zeros >= 0) & (m.zeros < 1)).all() or not (m.values.diff(dim=1) >= 0).all():
            raise ValueError("'zeros' or 'values' are those of no distribution")
        if not (self.size > 0 and (self.deviation > 0).all()):
            raise ValueError("'size' or 'deviation' is not above 0")
        if any(a < 0 or b < 0 or a + b > n for a, b in self.settings.values()):
            raise ValueError("'settings' lead beyond the donors")


def fit_spread(
    cells: Floats,
    conditions: npt.NDArray[np.int64],
    means: Floats,
    settings: Sequence[str],
    rng: torch.Generator,
) -> Spread:
    """The spread of `cells` [n, G] (log1p), row i of condition `conditions[i]`.

    means [C, G] and `settings` [C]: mean of each condition, and the name of its control population. `rng` draws what
    stands behind zeros, and the donors.
    """
    variances = ((cells - means[conditions]) ** 2).mean(0)
    size = float(np.sqrt(variances.mean())) or 1.0
    deviation = np.maximum(np.sqrt(variances) / size, SMALLEST)
    marginals = Marginals.fitted(cells)
    drawn = torch.randperm(len(cells), generator=rng)[:MOST_DONORS].numpy()
    places = {name: place for place, name in enumerate(dict.fromkeys(settings))}
    own = np.array([places[settings[condition]] for condition in conditions[drawn]])
    drawn = drawn[np.argsort(own, kind="stable")]
    counts = np.bincount(own, minlength=len(places))
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rates = marginals.rates(torch.from_numpy(means))[torch.from_numpy(conditions[drawn])]
    values = torch.from_numpy(cells[drawn].astype(np.float32))
    scores = marginals.scores(values, rates, torch.rand(values.shape, generator=rng))
    found = {name: (int(first[place]), int(counts[place])) for name, place in places.items()}
    return Spread(
        marginals, size, torch.from_numpy(deviation.astype(np.float32)), normal_scores(scores).half(), found
    )


def normal_scores(values: Float[Tensor, "n G"], inside: Float[Tensor, "n G"] | None = None) -> Tensor:
    """Each column's values replaced by standard normal numbers in the same order, one from each of n equal pieces.

    inside: where in its piece each number lies, in [0, 1); the middle unless given.
    """
    ranks = values.argsort(dim=0, stable=True).argsort(dim=0)
    share = (ranks.double() + (0.5 if inside is None else inside.double())) / len(values)
    scores: Tensor = torch.special.ndtri(share.clamp(min=1e-9, max=1 - 1e-9))
    return scores.float()
