"""Batches for training: cells of some conditions, control cells beside them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from scdfm.data.cells import CellTable
from scdfm.data.conditions import CONTROL, Vocabulary, targets
from scdfm.data.panel import GenePanel
from scdfm.data.split import Split
from scdfm.data.stored import StoredMatrix, subset
from scdfm.errors import DataError


@dataclass(frozen=True)
class Batch:
    """B = C · n cells, those of one condition side by side; expression is log1p as in the table.

    control, target: float32 [B, G]; perturbation: token ids int64 [C, P]; condition: int64 [B], places in
    `conditions` (C names).
    """

    control: torch.Tensor
    target: torch.Tensor
    perturbation: torch.Tensor
    condition: torch.Tensor
    conditions: tuple[str, ...]
    first: int = 0
    """Place of conditions[0] in `perturbation`, which `share` leaves whole."""

    def share(self, rank: int, world: int) -> Batch:
        """What process `rank` of `world` takes: neighbouring conditions, as many for each process as can be."""
        n, cells = len(self.conditions), len(self.target) // len(self.conditions)
        first, last = n * rank // world, n * (rank + 1) // world
        rows = slice(first * cells, last * cells)
        return replace(
            self, control=self.control[rows], target=self.target[rows], condition=self.condition[rows] - first,
            conditions=self.conditions[first:last], first=first,
        )  # fmt: skip

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pinned(self) -> Batch:
        """The batch in page-locked memory, for fast copies to a GPU."""
        return self._with(torch.Tensor.pin_memory)

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """This batch with all its tensors changed."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        changed: dict[str, Any] = {name: change(value) for name, value in tensors.items()}
        return replace(self, **changed)


class ConditionSampler:
    """Draws C conditions × n cells of one part of a split, and as many control cells, endlessly.

    Conditions are drawn uniformly (`weights="condition"`) or by their number of cells (`"cell"`), all different
    where there are C of them. `slots` is P of the encoded conditions (None: as many as the largest of the
    part needs, two at least). Targets and controls are drawn independently, with replacement, as in the
    published training. It holds the rows of its part and of control alone: no other cell can be drawn.

    Every draw comes from `rng`; `state_dict` saves and `load_state_dict` restores its state.
    """

    def __init__(
        self,
        cells: CellTable,
        split: Split,
        panel: GenePanel,
        rng: np.random.Generator,
        *,
        vocabulary: Vocabulary | None = None,
        slots: int | None = None,
        n_conditions: int = 1,
        n_cells: int = 96,
        weights: Literal["condition", "cell"] = "condition",
        part: Literal["train", "validation", "test"] = "train",
    ) -> None:
        self.conditions = split.part(part)
        if not self.conditions:
            raise DataError(f"sampler: the split has no {part} condition, expected at least one")
        if n_conditions < 1 or n_cells < 1:
            raise DataError(f"sampler: {n_conditions} conditions × {n_cells} cells, expected at least 1 × 1")
        if vocabulary is None:
            vocabulary = Vocabulary.build(panel.genes, (t for c in split.conditions for t in targets(c)))
        self.n_conditions = n_conditions
        self.n_cells = n_cells
        self.rng = rng
        self._perturbation = torch.from_numpy(vocabulary.encode(self.conditions, slots))
        self._index(cells, panel)
        sizes = np.array([len(rows) for rows in self._rows], dtype=np.float64)
        self._weights = sizes / sizes.sum() if weights == "cell" else np.full(len(sizes), 1 / len(sizes))

    def _index(self, cells: CellTable, panel: GenePanel) -> None:
        """Keep the panel columns of the part's and the control's rows; know the rows of each condition."""
        rows = [cells.rows(condition) for condition in (CONTROL, *self.conditions)]
        starts = np.cumsum([0, *map(len, rows)])
        x = subset(cells.X, np.concatenate(rows), cells.columns(panel.genes))
        fewer = len(panel.genes) < len(cells.genes)
        self._x = x.compacted() if isinstance(x, StoredMatrix) and fewer else x
        places = [np.arange(low, high) for low, high in itertools.pairwise(starts)]
        self._controls, self._rows = places[0], places[1:]

    def sample(self, rng: np.random.Generator | None = None) -> Batch:
        """One batch, drawn from `rng` if it is given, else from the sampler's own."""
        rng = rng or self.rng
        repeat = self.n_conditions > len(self.conditions)
        chosen = rng.choice(len(self.conditions), self.n_conditions, replace=repeat, p=self._weights)
        target = np.concatenate([_draw(rng, self._rows[place], self.n_cells) for place in chosen])
        control = _draw(rng, self._controls, len(target))
        return Batch(
            control=self._expression(control),
            target=self._expression(target),
            perturbation=self._perturbation[torch.from_numpy(chosen)],
            condition=torch.arange(self.n_conditions).repeat_interleave(self.n_cells),
            conditions=tuple(self.conditions[place] for place in chosen),
        )

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.sample()

    def state_dict(self) -> dict[str, Any]:
        """The state of the generator, JSON-able."""
        return dict(self.rng.bit_generator.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.rng.bit_generator.state = state

    def _expression(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(self._x[rows].toarray())


def _draw(rng: np.random.Generator, rows: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    return rows[rng.integers(len(rows), size=n)]
