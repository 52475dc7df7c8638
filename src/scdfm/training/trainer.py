"""Lightning's trainer as a fit uses it, and what happens beside the steps: averaged weights, curves, the end by SIGTERM.

The curves are log.csv and part of the checkpoint: a resumed fit's log equals an undisturbed one's. After SIGTERM, as
clusters send it before they take a machine away, the step under way ends, and is saved.
"""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import pandas as pd
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar, WeightAveraging
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.strategies import DDPStrategy

from scdfm.config import Config, TrainingConfig
from scdfm.errors import InterruptedFitError
from scdfm.files import write_csv
from scdfm.processes import launched, world_size
from scdfm.run import folder
from scdfm.seeds import derive
from scdfm.training.checkpoint import CHECKPOINTS, LAST, MONITOR, SafetensorsIO, last_good
from scdfm.training.module import FlowModule
from scdfm.training.steps import StepData
from scdfm.training.validation import SCORES


def run_loop(
    module: FlowModule, data: StepData, config: Config, out: Path, progress: bool, more: Sequence[Callback] = ()
) -> L.Trainer:
    """Run Lightning's loop to the end, from the last checkpoint in `out` where there is one; `more` callbacks listen."""
    trainer = make_trainer(config.training, out, validated=len(data.validation) > 0, progress=progress)
    trainer.callbacks.extend(more)  # type: ignore[attr-defined]
    last = out / CHECKPOINTS / LAST
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(derive(config.seed, "fit"))
        # Conditions to validate lie ready in memory: worker processes would only copy them.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Step s is the same batch in any process: nothing of the data need be restored.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        # Lightning's, of torch.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
        try:
            trainer.fit(module, datamodule=data, ckpt_path=str(last) if data.first_step else None, weights_only=False)
        except SystemExit as stop:  # Lightning's answer to Ctrl-C; 0: another process tells
            if stop.code == 0:
                raise
            raise stopped(trainer.global_step, last_good(out) or 0, last) from None
    return trainer


def make_trainer(options: TrainingConfig, out: Path, validated: bool, progress: bool) -> L.Trainer:
    """The loop of a fit in the run folder `out`: averaged weights, curves, checkpoints, processes."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)  # device tips are no news to the user
    validate_every = min(options.validate_every, options.max_steps)
    callbacks: list[Callback] = [AveragedWeights(options.ema_decay)] if options.ema_decay else []
    callbacks += [Curves(out / folder.LOG, options.max_steps), *_checkpoints(out, validate_every, validated)]
    if validated:
        callbacks.append(LastValidation())
    if options.patience and validated:
        callbacks.append(Patience(options.patience, options.warmup_steps))
    callbacks.append(Interruption(out / CHECKPOINTS / LAST))
    if progress:
        callbacks.append(StepBar(refresh_rate=10))
    return L.Trainer(
        max_steps=options.max_steps,
        max_epochs=1,
        val_check_interval=validate_every,
        limit_val_batches=1.0 if validated else 0,
        num_sanity_val_steps=0,
        gradient_clip_val=options.clip_norm or None,
        precision="bf16-mixed" if options.precision == "bf16" else "32-true",
        accelerator=options.accelerator,
        **_processes(options),
        logger=_logger(options.logger, out),
        log_every_n_steps=20,
        callbacks=callbacks,
        enable_progress_bar=progress,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=out,
    )


def _processes(options: TrainingConfig) -> dict[str, Any]:
    """Those that torchrun started, or as many as the options ask for, never those a scheduler happens to count."""
    place = launched()
    environment = LightningEnvironment() if place is None else TorchElasticEnvironment()
    settings: dict[str, Any] = {"plugins": [SafetensorsIO(), environment]}
    if place is None:
        settings |= {"devices": options.devices, "num_nodes": options.nodes}
    else:
        settings |= {"devices": place.local_world, "num_nodes": place.nodes}
    if world_size(options) > 1:
        # A step may leave parameters without a gradient, e.g. embeddings of what its conditions lack.
        settings["strategy"] = DDPStrategy(
            find_unused_parameters=True, timeout=timedelta(seconds=options.timeout),
            process_group_backend="gloo" if options.accelerator == "cpu" else None,
        )  # fmt: skip
    return settings


def _checkpoints(out: Path, every: int, validated: bool) -> list[Callback]:
    """`best` by the distance to validation cells, then `last`, which remembers it; both after each validation."""
    shared: dict[str, Any] = {"dirpath": out / CHECKPOINTS, "enable_version_counter": False}
    last: dict[str, Any] = {} if validated else {"every_n_train_steps": every}
    callbacks: list[Callback] = [ModelCheckpoint(filename="last", save_on_train_epoch_end=False, **last, **shared)]
    if validated:
        best = ModelCheckpoint(filename="best", monitor=MONITOR, save_on_train_epoch_end=False, **shared)
        callbacks.insert(0, best)
    for callback in callbacks:
        callback.FILE_EXTENSION = ".safetensors"  # type: ignore[attr-defined]
    return callbacks


def _logger(kind: str, out: Path) -> Any:
    """The logger beside the CSV log, or none."""
    if kind == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(out, name="tensorboard")
    if kind == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        return WandbLogger(project="scdfm", save_dir=out)
    return False


class LastValidation(L.Callback):
    """Has the last step validated, whatever lies between validations: what no one has judged cannot be kept."""

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *rest: Any) -> None:
        """Ask for the end: before it Lightning validates."""
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True


class Patience(EarlyStopping):
    """Ends a fit after `patience` validations in a row that were no better; those of the warm-up do not count."""

    def __init__(self, patience: int, warmup_steps: int) -> None:
        super().__init__(MONITOR, patience=patience, check_on_train_epoch_end=False)
        self.warmup_steps = warmup_steps

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A resumed fit that had ended does not go on."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count this validation, once steps have their full length."""
        if trainer.global_step > self.warmup_steps:
            super().on_validation_end(trainer, pl_module)


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
COLUMNS = ["step", *LOSSES, "learning_rate", *SCORES, MONITOR]
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

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *rest: Any) -> None:
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
            write_csv(self.path, pd.DataFrame(self.rows, columns=COLUMNS))


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

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *rest: Any) -> None:
        """Stop after a validation, which saved."""
        step = trainer.global_step
        if step and _validates(trainer) and self._asked_anywhere(trainer):
            self._stop(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *rest: Any) -> None:
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
        if trainer.world_size == 1:
            return self.asked
        return bool(trainer.strategy.reduce_boolean_decision(self.asked, all=False))


def _validates(trainer: L.Trainer) -> bool:
    """Whether the step just taken is one that ends in a validation, or in a checkpoint where nothing validates."""
    return trainer.global_step % int(trainer.val_check_interval or 1) == 0


def stopped(step: int, saved_step: int, last: Path) -> InterruptedFitError:
    """The error of a fit that stopped at `step` with a checkpoint of step `saved_step`."""
    return InterruptedFitError(
        f"fit stopped at step {step}; {last.parent.parent} holds the checkpoint of step {saved_step}: "
        "continue it with --resume"
    )
