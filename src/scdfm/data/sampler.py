"""Batches for training: cells of some conditions, control cells beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from scdfm.condition_tensors import ConditionTensors
from scdfm.data.cells import CellTable
from scdfm.data.conditions import CONTROL, SCREEN, Vocabulary, covariates, targets
from scdfm.data.encoding import ConditionEncoder
from scdfm.data.panel import GenePanel
from scdfm.data.split import Split
from scdfm.data.stored import StoredMatrix, subset
from scdfm.errors import DataError

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """B = C · n cells, those of one condition side by side; expression is log1p as in the table.

    control: float32 [B, G]; target: float32 [C · m, G], m ≥ n cells of each condition, of which the first n are seen where
    more are drawn to seek pairs among; perturbation: the C conditions encoded; condition: int64 [B], places in
    `conditions` (C names).
    """

    control: torch.Tensor
    target: torch.Tensor
    perturbation: ConditionTensors
    condition: torch.Tensor
    conditions: tuple[str, ...]
    first: int = 0
    """Place of conditions[0] in `perturbation`, which `share` leaves whole."""

    def share(self, rank: int, world: int) -> Batch:
        """What process `rank` of `world` takes: neighbouring conditions, as many for each process as can be."""
        n = len(self.conditions)
        first, last = n * rank // world, n * (rank + 1) // world

        def own(cells: torch.Tensor) -> torch.Tensor:
            each = len(cells) // n
            return cells[first * each : last * each]

        return replace(
            self, control=own(self.control), target=own(self.target), condition=own(self.condition) - first,
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
        return replace(self, perturbation=self.perturbation.changed(change), **changed)


class ConditionSampler:
    """Draws C conditions × n cells of one part of a split, and as many control cells, endlessly.

    Conditions are drawn uniformly (`weights="condition"`) or by their number of cells (`"cell"`), all different
    where there are C of them. `encoder` encodes them (None: one of `vocabulary`, or of all that the split names);
    `slots` is P (None: as many as the largest of the part needs, two at least). Targets and controls are drawn
    independently, with replacement, as in the published training; controls from the matching group of each target
    cell. `control_populations`, such as `control|cell_type=B`, are drawn as conditions beside those of the part. It
    holds the rows of its part and of control alone: no other cell can be drawn. Where screens measured different genes the
    conditions of a batch are all of one screen, drawn by what its conditions weigh together. `screen_weights` are factors
    of the weights of each screen's conditions (others: 1). n_drawn: target cells of each condition, n_cells or more (None:
    n_cells); controls are drawn for the first n_cells.

    Every draw comes from `rng`; `state_dict` saves and `load_state_dict` restores its state.
    """

    def __init__(
        self,
        cells: CellTable,
        split: Split,
        panel: GenePanel,
        rng: np.random.Generator,
        *,
        encoder: ConditionEncoder | None = None,
        vocabulary: Vocabulary | None = None,
        slots: int | None = None,
        n_conditions: int = 1,
        n_cells: int = 96,
        n_drawn: int | None = None,
        weights: Literal["condition", "cell"] = "condition",
        part: Literal["train", "validation", "test"] = "train",
        control_populations: Sequence[str] = (),
        screen_weights: Mapping[str, float] | None = None,
    ) -> None:
        if not split.part(part):
            raise DataError(f"sampler: the split has no {part} condition, expected at least one")
        self.conditions = (*split.part(part), *control_populations)
        if n_conditions < 1 or n_cells < 1:
            raise DataError(f"sampler: {n_conditions} conditions × {n_cells} cells, expected at least 1 × 1")
        if n_drawn is not None and n_drawn < n_cells:
            raise DataError(f"sampler: {n_drawn} cells drawn of each condition, expected the {n_cells} seen or more")
        if vocabulary is None:
            vocabulary = Vocabulary.build(panel.genes, (t for c in split.conditions for t in targets(c)))
        self.n_conditions = n_conditions
        self.n_cells = n_cells
        self.n_drawn = n_drawn or n_cells
        self.rng = rng
        self._encoder = encoder or ConditionEncoder(vocabulary)
        self._slots = self._encoder.slots(self.conditions) if slots is None else slots
        self._index(cells, panel)
        sizes = np.array([len(rows) for rows in self._rows], dtype=np.float64)
        self._weights = sizes / sizes.sum() if weights == "cell" else np.full(len(sizes), 1 / len(sizes))
        screens = [covariates(name).get(SCREEN, "") for name in self.conditions]
        if screen_weights:
            weighted = self._weights * [screen_weights.get(screen, 1.0) for screen in screens]
            self._weights = weighted / weighted.sum()
        screens = screens if cells.measured else [""] * len(screens)
        self._groups = [np.flatnonzero(np.isin(screens, one)) for one in dict.fromkeys(screens)]

    def _index(self, cells: CellTable, panel: GenePanel) -> None:
        """Keep the panel columns of the part's and the control's rows; know the rows of each condition."""
        controls = cells.rows(CONTROL)
        rows = [cells.population(condition) for condition in self.conditions]
        table_rows = np.unique(np.concatenate([controls, *rows]))
        x = subset(cells.X, table_rows, cells.columns(panel.genes))
        fewer = len(panel.genes) < len(cells.genes)
        self._x = x.compacted() if isinstance(x, StoredMatrix) and fewer else x
        self._rows = [np.searchsorted(table_rows, part) for part in rows]
        self._controls = _Controls(np.searchsorted(table_rows, controls), cells.match[table_rows])

    def sample(self, rng: np.random.Generator | None = None) -> Batch:
        """One batch, drawn from `rng` if it is given, else from the sampler's own."""
        rng = rng or self.rng
        places = self._chosen(rng)
        rows_of = [self._rows[place] for place in places]
        target = np.stack([rows[rng.integers(len(rows), size=self.n_drawn)] for rows in rows_of])
        control = self._controls.draw(rng, target[:, : self.n_cells].ravel())
        conditions = tuple(self.conditions[place] for place in places)
        return Batch(
            control=self._expression(control),
            target=self._expression(target.ravel()),
            perturbation=self._encoder.encode(conditions, self._slots),
            condition=torch.arange(self.n_conditions).repeat_interleave(self.n_cells),
            conditions=conditions,
        )

    def _chosen(self, rng: np.random.Generator) -> Rows:
        """Places of the conditions of a batch."""
        if len(self._groups) == 1:
            repeat = self.n_conditions > len(self.conditions)
            return rng.choice(len(self.conditions), self.n_conditions, replace=repeat, p=self._weights)
        shares = np.array([self._weights[group].sum() for group in self._groups])
        group = self._groups[rng.choice(len(shares), p=shares / shares.sum())]
        weights = self._weights[group] / self._weights[group].sum()
        return rng.choice(group, self.n_conditions, replace=self.n_conditions > len(group), p=weights)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.sample()

    def state_dict(self) -> dict[str, Any]:
        """The state of the generator, JSON-able."""
        return dict(self.rng.bit_generator.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.rng.bit_generator.state = state

    def _expression(self, rows: Rows) -> torch.Tensor:
        return torch.from_numpy(self._x[rows].toarray())


class _Controls:
    """Control rows by matching group; a group without any draws from all."""

    def __init__(self, rows: Rows, match: Rows) -> None:
        """`match` is the group of every row, controls and others."""
        self._rows = rows[np.argsort(match[rows], kind="stable")]
        groups = match[self._rows]
        self._first = np.searchsorted(groups, match, side="left")
        self._n = np.searchsorted(groups, match, side="right") - self._first
        alone = self._n == 0
        self._first[alone], self._n[alone] = 0, len(rows)

    def draw(self, rng: np.random.Generator, targets: Rows) -> Rows:
        """A control row for each target row."""
        first, n = self._first[targets], self._n[targets]
        bound = int(n[0]) if (n == n[0]).all() else n
        drawn: Rows = self._rows[first + rng.integers(bound, size=len(targets))]
        return drawn
