"""The training curves as log.csv, part of the checkpoint: a resumed fit's log equals an undisturbed one's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from scdfm.files import written_whole
from scdfm.training.validation import SCORES

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
