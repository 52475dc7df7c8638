"""What happens beside the steps of a fit: averaged weights, training curves, and the end that SIGTERM asks for.

The curves are log.csv and part of the checkpoint: a resumed fit's log equals an undisturbed one's. After SIGTERM, as
clusters send it before they take a machine away, the step under way ends, and is saved.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import TQDMProgressBar, WeightAveraging
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from scdfm.errors import InterruptedFitError
from scdfm.files import written_whole
from scdfm.training.validation import SCORES


class AveragedWeights(WeightAveraging):
    """θ̄ ← d·θ̄ + (1 − d)·θ after each step, with d = min(decay, (1 + n) / (10 + n)) after n updates.

    The ramp lets a short fit forget its random start.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: list[torch.Tensor], current: list[torch.Tensor], n: torch.Tensor | int) -> None:
            ramped = min(decay, (1 + int(n)) / (10 + int(n)))
            torch._foreach_lerp_(averaged, current, 1 - ramped)

        super().__init__(use_buffers=False, multi_avg_fn=average)


LOSSES = ("loss", "cfm", "mmd")
COLUMNS = ["step", *LOSSES, "learning_rate", *SCORES]
MOST_ROWS = 5000


class StepBar(TQDMProgressBar):
    """One bar over the steps, with time left; validations pass without bars of their own."""

    def init_validation_tqdm(self) -> Tqdm:
        """A bar that shows nothing."""
        return Tqdm(disable=True)


class Curves(L.Callback):
    """Keeps a row every `every` steps and one for each validation; writes the table at validations and at the end.

    `every` is 20, more in a fit of more than `MOST_ROWS` such rows: the table is part of each checkpoint.
    """

    def __init__(self, path: Path, max_steps: int) -> None:
        self.path, self.every = path, max(20, max_steps // MOST_ROWS)
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the losses of this step."""
        step = trainer.global_step
        if step % self.every == 0 or step == 1:
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            losses = torch.stack([trainer.callback_metrics[name] for name in LOSSES])
            if trainer.world_size > 1:
                losses = trainer.strategy.reduce(losses.to(trainer.strategy.root_device), reduce_op="mean")
            named = dict(zip(LOSSES, losses.tolist(), strict=True))
            self._add({"step": step, "learning_rate": rate, **named})

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Add the validation scores and write the table."""
        if not trainer.sanity_checking:
            scores = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val_")}
            self._add({"step": trainer.global_step, **scores})
            self._write(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write the table."""
        self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the rows of a checkpoint."""
        self.rows = state_dict["rows"]

    def _add(self, values: dict[str, float]) -> None:
        """One row for each step: values of a step already there join it."""
        if self.rows and self.rows[-1]["step"] == values["step"]:
            self.rows[-1].update(values)
        else:
            self.rows.append(values)

    def _write(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and self.rows:
            with written_whole(self.path) as temporary:
                pd.DataFrame(self.rows, columns=COLUMNS).to_csv(temporary, index=False)


class Interruption(L.Callback):
    """On SIGTERM in any process of the fit, saves `last` after the step under way and raises InterruptedFitError.

    Lightning's own answer saves nothing, and calls from its handler into whatever communication is going on.
    """

    def __init__(self, last: Path) -> None:
        self.last, self.asked = last, False

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Listen; Lightning puts the earlier handler back when it ends."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop after a validation, which saved."""
        step = trainer.global_step
        if step and _validates(trainer) and self._asked_anywhere(trainer):
            self._stop(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop, unless a validation is to follow: a checkpoint of now would lack it."""
        step = trainer.global_step
        if step < trainer.max_steps and not _validates(trainer) and self._asked_anywhere(trainer):
            trainer.save_checkpoint(self.last)
            self._stop(trainer)

    def _stop(self, trainer: L.Trainer) -> NoReturn:
        """The first process tells; the others leave in peace, or their launcher would kill it."""
        if not trainer.is_global_zero:
            raise SystemExit(0)
        raise stopped(trainer.global_step, trainer.global_step, self.last)

    def _asked_anywhere(self, trainer: L.Trainer) -> bool:
        return self.asked if trainer.world_size == 1 else any_process(trainer, self.asked)


def _validates(trainer: L.Trainer) -> bool:
    """Whether the step just taken is one that ends in a validation, or in a checkpoint where nothing validates."""
    return trainer.global_step % int(trainer.val_check_interval or 1) == 0


def any_process(trainer: L.Trainer, said: bool) -> bool:
    """Whether any process of the fit says so."""
    return bool(trainer.strategy.reduce_boolean_decision(said, all=False))


def stopped(step: int, kept: int, last: Path) -> InterruptedFitError:
    """The error of a fit that stopped at `step` with a checkpoint of step `kept`."""
    return InterruptedFitError(
        f"fit stopped at step {step}; {last.parent.parent} holds the checkpoint of step {kept}: "
        "continue it with --resume"
    )
