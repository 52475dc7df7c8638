"""The flow objective as a LightningModule: one step, one validation, one optimiser."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from scdfm.condition_tensors import ConditionTensors
from scdfm.config import Config, TrainingConfig
from scdfm.data import Batch
from scdfm.data.conditions import SCREEN, covariates
from scdfm.errors import TrainingError
from scdfm.flow import FlowLoss, Noise, Start, in_units, paired, sample_time, step
from scdfm.model import VelocityField
from scdfm.prior import PriorStart
from scdfm.seeds import derive, torch_rng
from scdfm.training.checkpoint import MONITOR, diverged, require_finite
from scdfm.training.steps import ValidationBatch, place
from scdfm.training.validation import JUDGED, PREDICTED, SCORES, condition_scores, monitored

BACKEND = "inductor"
VARIANTS = 64
"""Versions of a layer's code that may be kept: with and without gradients, for a few sizes."""
WORTH_COMPILING = 5000
"""Steps from which a fit is taken to gain more by compiled layers than the minute or two that they take to compile. A guess
from what one card showed (docs/log.md): steps with and without were never timed."""


def compile_layers(
    field: VelocityField, mode: Literal["auto", "on", "off"], device: torch.device, steps: int = WORTH_COMPILING
) -> bool:
    """Compile the layers of `field` in place; say if it is done. `mode` "auto" does so on a GPU, from WORTH_COMPILING
    steps on.

    A layer is compiled at its first evaluation, and the others share its code: the whole field's would take minutes.
    Where nothing can be compiled (the CPU needs a C++ compiler, a GPU Triton) a warning says why, and the
    layers run as they are, with the same numbers to rounding.
    """
    if mode == "off" or (mode == "auto" and (device.type != "cuda" or steps < WORTH_COMPILING)):
        return False
    try:
        torch.compile(_probe, backend=BACKEND)(torch.ones(8, device=device))
    except Exception as error:  # whatever the compiler's tools raise: the fit can do without them
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(
            f"training.compile '{mode}': nothing can be compiled for the {device.type} here ({reason}); "
            "going on without, slower but with the same numbers",
            stacklevel=2,
        )
        return False
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    for layer in field.layers:
        layer.compile(backend=BACKEND)
    return True


def _probe(x: torch.Tensor) -> torch.Tensor:
    """Something to compile."""
    return x.exp() + 1


class FlowModule(L.LightningModule):
    """Trains a velocity field by L = L_CFM + γ·MMD² (docs/method.md) and validates it by generating populations."""

    def __init__(
        self,
        field: VelocityField,
        config: Config,
        gene_ids: Tensor,
        rates: Tensor,
        n_validation: int = 0,
        start: PriorStart | None = None,
        measured: Mapping[str, Tensor] | None = None,
        untrained: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.untrained = untrained  # [C] energy distance of the prior's populations
        self.start = start
        self.measured = measured or {}  # places of the panel genes of each screen, where not all have all
        # Last: 1 where this process generated it.
        self.scores = torch.zeros(n_validation, len(SCORES) + len(PREDICTED) + 1)
        self.gene_ids: Tensor
        self.rates: Tensor
        self.field = field
        self.config = config
        field.checkpointing = config.training.checkpointing
        self.mmd = in_units(config.mmd, 1.0 if start is None else start.unit)
        self.register_buffer("gene_ids", gene_ids, persistent=False)  # [G] token of each panel gene
        self.register_buffer("rates", rates, persistent=False)  # [G] rates of the Poisson source

    def on_fit_start(self) -> None:
        """Compile what is to be compiled, now that the device is known."""
        options = self.config.training
        compile_layers(self.field, options.compile, self.device, options.max_steps)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of this process's share of one step; every draw comes from (seed, step), but for dropout's.

        Genes, times, noise and hidden conditions are drawn for the whole batch, whatever the share. The losses'
        mean over processes is the loss of the whole batch, as is the gradients'.
        """
        seed, at = self.config.seed, (self.global_step, 0)
        torch.manual_seed(derive(seed, "dropout", self.global_step, self.global_rank))
        rng = torch_rng(seed, "flow", *at)
        places = self._draw_genes(batch, rng)
        start = self._start(batch.conditions).on(places)
        t, source, target = self._path(batch, places, start, rng)
        n_conditions, n_whole = len(batch.conditions), len(batch.perturbation)
        context = self.field.context(
            control=batch.control[:, places],
            genes=self.gene_ids[places],
            perturbation=self._conditions(batch, torch_rng(seed, "hidden conditions", *at)),
            condition=batch.condition,
            **start.inputs(),
        )
        loss = step(lambda t, x: self.field.velocity(x, t, context), start, source, target, t, n_conditions, self.mmd)
        if not torch.isfinite(loss.total):
            raise self._diverged(f"the loss is {loss.total.item()}")
        weight = n_conditions * self.trainer.world_size / n_whole
        loss = FlowLoss(*(term * weight for term in loss))
        self.log_dict({"loss": loss.total.detach(), "cfm": loss.cfm.detach(), "mmd": loss.mmd.detach()}, prog_bar=True)
        return loss.total

    def _path(
        self, batch: Batch, places: Tensor | slice, start: Start, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Times of the cells that the network sees, and both ends x₀ and x₁ of the paths of all that are drawn, of this
        process."""
        cells, n_own, n_all = batch.target[:, places], len(batch.conditions), len(batch.perturbation)
        n_seen, n_drawn = len(batch.condition) // n_own, len(cells) // n_own
        condition = torch.arange(n_own, device=cells.device).repeat_interleave(n_drawn)

        def mine(values: Tensor, each: int) -> Tensor:
            return values[batch.first * each : (batch.first + n_own) * each]

        t = mine(sample_time(n_all * n_seen, rng, stratified=self.config.flow.time == "stratified"), n_seen)
        drawn = mine(start.draw(n_all * n_drawn, rng), n_drawn)
        uniform = mine(torch.rand((n_all * n_drawn, cells.shape[1]), generator=rng), n_drawn).to(cells.device)
        source = start.source(drawn, condition)
        target = start.to_flow(cells, condition, uniform)
        if self.config.flow.pairing == "optimal":
            source = paired(source, target, n_own)
        return t.to(cells.device), source, target

    def _conditions(self, batch: Batch, rng: torch.Generator) -> ConditionTensors:
        """This process's conditions, some of them or of their identities hidden at random."""
        options = self.config.training
        whole = batch.perturbation.thinned(rng, options.condition_dropout, options.id_dropout)
        last = batch.first + len(batch.conditions)
        return whole[torch.arange(batch.first, last, device=self.device)]

    def _draw_genes(self, batch: Batch, rng: torch.Generator) -> Tensor | slice:
        """Places of T of the G panel genes, drawn once for the batch among those that its screen measured."""
        n_genes, n_drawn = batch.target.shape[1], self.config.flow.genes_per_step
        if self.measured:
            places = self.measured[covariates(batch.conditions[0])[SCREEN]]
            drawn = places[torch.randperm(len(places), generator=rng)[:n_drawn]]
            return drawn.to(batch.target.device)
        if n_drawn is None or n_drawn >= n_genes:
            return slice(None)
        return torch.randperm(n_genes, generator=rng)[:n_drawn].to(batch.target.device)

    def _start(self, conditions: Sequence[str]) -> Start:
        """Where the flow of these conditions starts."""
        if self.start is None:
            poisson = self.config.flow.source == "poisson"
            return Noise(len(self.gene_ids), "poisson", self.rates) if poisson else Noise(len(self.gene_ids))
        self.start = self.start.to(self.device)
        return self.start.of(conditions)

    def validation_step(self, batch: ValidationBatch, batch_idx: int) -> None:
        """Generate one validation condition and keep its scores."""
        try:
            scores = condition_scores(self.field, batch, self.config, self.gene_ids, self._start([batch.name]))
        except TrainingError:
            raise self._diverged("the populations generated to validate are not finite") from None
        at = place(batch_idx, len(self.scores), self.global_rank, self.trainer.world_size)
        self.scores[at] = torch.cat([scores, torch.ones(1)])

    def _diverged(self, what: str) -> TrainingError:
        return diverged(what, Path(self.trainer.default_root_dir), self.global_step, self.config)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the scores of the last validation. Nothing that is no number is saved: the checkpoint before stays."""
        metrics = self.trainer.callback_metrics
        checkpoint["scores"] = {name: float(metrics[name]) for name in JUDGED if name in metrics}
        states = {name: checkpoint.get(name) for name in ("state_dict", "current_model_state", "optimizer_states")}
        require_finite(states, Path(self.trainer.default_root_dir), self.global_step, self.config)

    def on_validation_epoch_start(self) -> None:
        """Forget the scores of the validation before."""
        self.scores = torch.zeros_like(self.scores)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all conditions, whichever process generated them."""
        scores = self.trainer.strategy.reduce(self.scores.to(self.device), reduce_op="sum").cpu()
        scores = scores[:, :-1] / scores[:, -1:]
        shown = dict(zip(SCORES, scores.mean(0), strict=False))
        chosen = torch.tensor(monitored(scores, self.untrained), dtype=torch.float32)
        metrics = {name: value.to(self.device) for name, value in (shown | {MONITOR: chosen}).items()}
        self.log_dict(metrics, prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW or Adam, linear warm-up, cosine down to `min_learning_rate`, once per step."""
        options = self.config.training
        kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
        groups = parameter_groups(self.field, options.weight_decay)
        # Lightning clips no gradients of a fused optimizer in mixed precision.
        fused = options.precision == "32"
        optimizer = kinds[options.optimizer](groups, lr=options.learning_rate, fused=fused)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, options))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def learning_rate_factor(step: int, options: TrainingConfig) -> float:
    """Learning rate at `step` as a share of `learning_rate`: linear warm-up, then a cosine to `min_learning_rate`."""
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    span = max(1, options.max_steps - options.warmup_steps)
    done = min(1.0, (step - options.warmup_steps) / span)
    floor = options.min_learning_rate / options.learning_rate
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def parameter_groups(field: VelocityField, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and λ vectors do not (decay would pull a norm's scale to zero)."""
    parameters = list(field.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
