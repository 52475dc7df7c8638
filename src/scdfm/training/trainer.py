"""Lightning's trainer as a fit uses it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

from scdfm.config import Config, TrainingConfig
from scdfm.processes import launched, world_size
from scdfm.run import folder
from scdfm.seeds import derive
from scdfm.training.callbacks import AveragedWeights, Curves, Interruption, StepBar, stopped
from scdfm.training.checkpoint import CHECKPOINTS, LAST, SafetensorsIO
from scdfm.training.divergence import last_good
from scdfm.training.module import FlowModule
from scdfm.training.steps import StepData
from scdfm.training.validation import MONITOR


def run_loop(
    module: FlowModule,
    data: StepData,
    config: Config,
    out: Path,
    progress: bool,
    more: Sequence[Callback] = (),
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
            trainer.fit(
                module, datamodule=data, ckpt_path=str(last) if data.first_step else None, weights_only=False
            )
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
    if options.patience and validated:
        callbacks.append(EarlyStopping(MONITOR, patience=options.patience, check_on_train_epoch_end=False))
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
    found: dict[str, Any] = {"plugins": [SafetensorsIO(), environment]}
    if place is None:
        found |= {"devices": options.devices, "num_nodes": options.nodes}
    else:
        found |= {"devices": place.local_world, "num_nodes": place.nodes}
    if world_size(options) > 1:
        # A step may leave parameters without a gradient, e.g. embeddings of what its conditions lack.
        found["strategy"] = DDPStrategy(
            find_unused_parameters=True, timeout=timedelta(seconds=options.timeout),
            process_group_backend="gloo" if options.accelerator == "cpu" else None,
        )  # fmt: skip
    return found


def _checkpoints(out: Path, every: int, validated: bool) -> list[Callback]:
    """`best` by the distance to validation cells, then `last`, which remembers it; both after each validation."""
    shared: dict[str, Any] = {"dirpath": out / CHECKPOINTS, "enable_version_counter": False}
    last: dict[str, Any] = {} if validated else {"every_n_train_steps": every}
    callbacks: list[Callback] = [
        ModelCheckpoint(filename="last", save_on_train_epoch_end=False, **last, **shared)
    ]
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
