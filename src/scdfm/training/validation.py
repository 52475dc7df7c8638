"""How good a field is on validation conditions, what training added over the prior, and the weights that a run keeps.

The best checkpoint is that of the smallest MONITOR: the energy distance, which sees means, spreads and what genes have in
common, of populations as they would be predicted. Its populations and the untrained ones are then compared condition by
condition. Trained weights are kept only where they are clearly better by it and clearly worse by none of JUDGED: an
interval of the paired differences lies on one side of 0. Means are those that are believed (`scdfm.prior.shrink`). Weights
may be worth it with the flow's values, or with values between these and the prior's. The flow's own populations, before
that, may not be worse in energy distance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from scipy import stats
from torch import Tensor

from scdfm.config import Config
from scdfm.flow import Keep, Start, energy, generate, wasserstein
from scdfm.model import VelocityField
from scdfm.prior import PriorStart, Shrinkage
from scdfm.prior.shrink import NOT_FOLLOWED, REORDERED, share_of_values
from scdfm.seeds import torch_rng
from scdfm.training.checkpoint import BEST, CHECKPOINTS, LAST, read_checkpoint
from scdfm.training.steps import ValidationBatch

Populations: TypeAlias = Callable[[Shrinkage | None], list[Tensor]]
"""Cells of each validation condition, as a shrinkage has them."""
SCORES = ("val_energy", "val_wasserstein", "val_l2", "val_pearson_delta")
PREDICTED = (NOT_FOLLOWED, REORDERED)
"""What may be predicted of a flow whose own means are not believed."""
JUDGED = SCORES[:3]
"""Scores that decide between trained and untrained weights, smaller is better: the first keeps them, each may refuse them.
One alone keeps, for of three one is often clear by chance."""
ROUNDING = 1e-5
"""Share of a score below which a difference is none: as that of equal means, or of equal values in another order."""


def population(
    field: VelocityField, batch: ValidationBatch, config: Config, genes: Tensor, start: Start, keep: Keep | None = None
) -> Tensor:
    """Cells [M, g] generated for one validation condition; of one condition with the same noise, whatever the field.

    genes [G] are the panel's tokens, as many as `start` has; keep: as of `generate`. Raises TrainingError for cells that
    are no numbers.
    """
    return generate(
        field, control=batch.control, perturbation=batch.perturbation,
        condition=torch.zeros(len(batch.control), dtype=torch.long, device=batch.control.device),
        genes=genes[batch.places], sampling=config.sampling, genes_per_step=config.flow.genes_per_step,
        rng=torch_rng(config.seed, "validation noise", batch.name), start=start.on(batch.places.cpu()),
        keep=keep,
    )  # fmt: skip


def condition_scores(
    field: VelocityField, batch: ValidationBatch, config: Config, genes: Tensor, start: Start
) -> Tensor:
    """SCORES of the population of one condition, then the energy distances of what may be predicted of it (PREDICTED)."""
    keep = _kept_in({}, batch.name)
    own = score(population(field, batch, config, genes, start, keep), batch)
    if not (isinstance(start, PriorStart) and config.sampling.shrink):
        return torch.cat([own, own[:1].expand(len(PREDICTED))])
    starts = [replace(start, shrinkage=shrinkage) for shrinkage in PREDICTED]
    made = [population(field, batch, config, genes, one, keep) for one in starts]
    return torch.cat([own, torch.stack([energy(cells, batch.target.cpu()) for cells in made])])


def _kept_in(ends: dict[str, Tensor], condition: str) -> Keep:
    """Blocks of a condition's flow, solved once and kept in `ends`."""

    def keep(name: str, solve: Callable[[], Tensor]) -> Tensor:
        key = f"{condition}: {name}"
        if key not in ends:
            ends[key] = solve()
        return ends[key]

    return keep


def monitored(scores: Tensor, untrained: Tensor | None) -> float:
    """What chooses the best checkpoint: the smaller, the better.

    scores [C, scores + 2]: of `condition_scores`. untrained [C]: energy distances of the prior's populations; None: the
    flow starts from noise, and its own energy distance decides. A flow's means are believed only where they help, so the
    smallest of the energy distances is that of what would be predicted. Weights whose own populations are worse than the
    prior's would not be kept: they come after all others.
    """
    own, predicted = scores[:, 0].mean().item(), scores[:, len(SCORES) :].mean(0).min().item()
    if untrained is None:
        return own
    return own if own > untrained.mean().item() else min(own, predicted)


def score(cells: Tensor, batch: ValidationBatch) -> Tensor:
    """SCORES [4] of a population: distance of whole cells, of genes, of means; correlation of shifts."""
    mean, target, real = cells.mean(0), batch.target_mean.cpu(), batch.target.cpu()
    shifts = torch.stack([mean, target]) - batch.control_mean.cpu()
    length = torch.linalg.vector_norm(mean - target)
    return torch.stack([energy(cells, real), wasserstein(cells, real), length, torch.corrcoef(shifts)[0, 1]])


LEVEL = 0.95


class Kept(NamedTuple):
    """The weights of a run, the step and scores that the manifest says of them, and how far their means are believed."""

    weights: dict[str, Tensor]
    result: dict[str, float | int | None]
    shrinkage: Shrinkage | None = None

    @classmethod
    def best(cls, out: Path) -> Kept:
        """The weights of the best validation of the fit in `out`."""
        checkpoint = read_checkpoint(out / CHECKPOINTS / BEST)
        return cls(_averaged(checkpoint), {"step": checkpoint["global_step"], **checkpoint["scores"]})

    @classmethod
    def last(cls, field: VelocityField, step: int, out: Path) -> Kept:
        """The weights of the last step, which trained `field`.

        From the checkpoint where it is of that step: a fit that is resumed there takes no step any more, and the field
        then holds the weights that are trained, not their average.
        """
        last = out / CHECKPOINTS / LAST
        if last.is_file() and (checkpoint := read_checkpoint(last))["global_step"] == step:
            return cls(_averaged(checkpoint), {"step": step})
        return cls(field.state_dict(), {"step": step})


def _averaged(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The (averaged) weights of the field in a checkpoint."""
    state, prefix = checkpoint["state_dict"], "field."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


class Gain(NamedTuple):
    """Mean of paired differences, positive where training made a score better, and its interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, differences: Tensor) -> Gain:
        """Student's interval over n conditions; without bounds where n is 1."""
        mean, n = differences.mean().item(), len(differences)
        if n < 2:
            return cls(mean, -float("inf"), float("inf"))
        reach = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * differences.std().item() / n**0.5
        return cls(mean, mean - reach, mean + reach)

    @property
    def verdict(self) -> str:
        """better, worse or unclear."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "unclear"


def gains_of(before: Tensor, after: Tensor) -> dict[str, Gain]:
    """How much smaller JUDGED became, condition by condition; both are SCORES [C, scores]."""
    differences = torch.where((before - after).abs() > ROUNDING * before.abs(), before - after, 0)
    return {name: Gain.of(differences[:, SCORES.index(name)].double()) for name in JUDGED}


def worth_keeping(gains: Mapping[str, Gain], own: Gain) -> bool:
    """Whether trained weights are kept, by what they gain over the prior, and what their `own` populations gain in energy
    distance."""
    first, *others = (gains[name].verdict for name in JUDGED)
    return first == "better" and "worse" not in others and own.mean >= 0


@dataclass(frozen=True)
class Jury:
    """The validation conditions of a fit from the prior; `genes` [G] as in `population`. `untrained`: a field of zero."""

    batches: Sequence[ValidationBatch]
    config: Config
    genes: Tensor
    start: PriorStart
    untrained: VelocityField

    def judged(self, kept: Kept) -> Kept:
        """What a run keeps of trained weights, or of the `untrained` that correct nothing, and what training gained."""
        field = copy.deepcopy(self.untrained)
        before = self.populations(field)
        field.load_state_dict(kept.weights)
        flow = self.flow(field)
        own = flow(None)
        first = self.scores(before)
        alone = gains_of(first, self.scores(own))[SCORES[0]]
        shrinkage = self.believed(before, own, flow)
        last = self.scores(flow(shrinkage))
        gains = gains_of(first, last)
        comparison: dict[str, float | int | None] = {"gain_conditions": len(self.batches)} | {
            f"gain_{name.removeprefix('val_')}{end}": value for name in JUDGED for end, value in _told(gains[name])
        }
        if self.config.training.keep == "best" and not worth_keeping(gains, alone):
            return Kept(self.untrained.state_dict(), {"step": 0, **_means(first), **comparison})
        return Kept(kept.weights, kept.result | _means(last) | comparison, shrinkage)

    def of_prior(self) -> Tensor:
        """Energy distance [C] of the prior's own populations."""
        return self.scores(self.populations(self.untrained))[:, 0]

    def populations(self, field: VelocityField) -> list[Tensor]:
        """Cells [M, g] of each condition, as the field makes them."""
        return self.flow(field)(None)

    def flow(self, field: VelocityField) -> Populations:
        """The field's populations with one shrinkage or another; it is solved once for all of them."""
        ends: dict[str, Tensor] = {}

        def populations(shrinkage: Shrinkage | None) -> list[Tensor]:
            made = []
            for batch in self.batches:
                start = replace(self.start.of([batch.name]), shrinkage=shrinkage)
                keep = _kept_in(ends, batch.name)
                made.append(population(field, batch, self.config, self.genes, start, keep))
            return made

        return populations

    def scores(self, populations: Sequence[Tensor]) -> Tensor:
        """SCORES [C, scores] of each condition."""
        return torch.stack([score(cells, batch) for cells, batch in zip(populations, self.batches, strict=True)])

    def believed(self, before: Sequence[Tensor], own: Sequence[Tensor], flow: Populations) -> Shrinkage | None:
        """How far means and values of the `flow` that made `own` of `before` are believed."""
        if not self.config.sampling.shrink:
            return None
        whole = self.shrinkage(before, own)
        share = share_of_values(before, flow(whole), [batch.target.cpu() for batch in self.batches])
        return whole.model_copy(update={"values": share})

    def shrinkage(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> Shrinkage:
        """How far means follow the flow that made `after` of `before`.

        Means are of the genes that validate, doubts of all: κ takes their share, in validation as in prediction.
        """
        expected, flowed = (torch.stack([cells.mean(0) for cells in each]) for each in (before, after))
        real = torch.stack([batch.target_mean for batch in self.batches])
        variances = torch.stack([batch.target.var(0, correction=0).sum() for batch in self.batches])
        sampling = variances / torch.tensor([batch.n_cells for batch in self.batches])
        doubt = self.start.of([batch.name for batch in self.batches]).doubt
        return Shrinkage.fitted(expected, flowed, real, sampling, doubt)


def _means(scores: Tensor) -> dict[str, float]:
    return {name: scores[:, SCORES.index(name)].mean().item() for name in JUDGED}


def _told(gain: Gain) -> list[tuple[str, float | None]]:
    """A gain as numbers of the manifest: an interval without bounds has none."""
    bounded = abs(gain.low) != float("inf")
    return [("", gain.mean), ("_low", gain.low if bounded else None), ("_high", gain.high if bounded else None)]


def summary(result: Mapping[str, float | int | None], n_conditions: int) -> str | None:
    """What training added over the prior, metric by metric, in one line; none where nothing was compared.

    n_conditions: how many validate. Those that judged may be fewer: nothing tells of a target, or the budget was spent.
    Where none does and a trained flow is kept, the line says so.
    """
    if not n_conditions and result.get("step"):
        return "no condition validates: the weights of the last step are kept, and nothing says what training added"
    parts = []
    for name in (key.removeprefix("val_") for key in JUDGED):
        mean, low, high = (result.get(f"gain_{name}{end}") for end in ("", "_low", "_high"))
        if mean is None:
            return None
        if low is None or high is None:
            parts.append(f"{name} {mean:+.3g} (no interval)")
        else:
            clear = "clear" if low > 0 else "clearly worse" if high < 0 else "not clear"
            parts.append(f"{name} {mean:+.3g} ({low:.3g} to {high:.3g}, {clear})")
    outcome = "the prior alone is kept" if result.get("step") == 0 else "trained weights are kept"
    judged = result.get("gain_conditions") or n_conditions  # runs of before do not say
    some = f"{judged:.0f} of {n_conditions}" if judged < n_conditions else f"{n_conditions}"
    plural = "s" if n_conditions > 1 else ""
    return f"training over the prior, {some} validation condition{plural}: {', '.join(parts)}; {outcome}"
