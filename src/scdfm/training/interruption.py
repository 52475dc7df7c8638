"""SIGTERM, as clusters send it before they take a machine away: the step under way ends, and is saved."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any, NoReturn

import lightning as L

from scdfm.errors import InterruptedFitError


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
