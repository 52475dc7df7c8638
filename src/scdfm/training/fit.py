"""From a table of cells to a run folder: panel, graph, means, then the loop."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from scdfm.config import Config
from scdfm.data import (
    CONTROL,
    CellTable,
    ConditionSampler,
    GenePanel,
    Split,
    Vocabulary,
    coexpression_graph,
    make_split,
    select_genes,
    targets,
    vocabulary_graph,
)
from scdfm.data.stored import subset
from scdfm.errors import ConfigError, RunError
from scdfm.files import new_folder
from scdfm.processes import is_first, together, wait_for_all, world_size
from scdfm.run import Run, folder
from scdfm.run.manifest import FORMAT, NAME, Manifest, versions
from scdfm.seeds import derive, numpy_rng
from scdfm.training.checkpoint import read_checkpoint
from scdfm.training.interruption import stopped
from scdfm.training.module import FlowModule
from scdfm.training.steps import Dealt, Prefetched, StepBatches, ValidationConditions
from scdfm.training.trainer import BEST, CHECKPOINTS, LAST, make_trainer


def fit(
    cells: CellTable,
    split: Split | None = None,
    config: Config | None = None,
    *,
    out: str | Path,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Train a velocity field on the training conditions of `split` and leave a run folder at `out`.

    cells: log1p expression of control and perturbed cells (`read_cells`).
    split: None makes the one that `config.split` describes.
    config: None is the preset `default`.
    resume: continue the fit that was interrupted in `out`; on CPU the weights are, bit for bit, those of an
        uninterrupted one. A finished run is returned as it is; an empty `out` starts a new fit.

    Test cells choose nothing: genes, graph, means and checkpoint come from training and validation conditions.
    Under `torchrun`, or with `training.devices`, several processes share each step (docs/many-machines.md): all
    call this with the same arguments, the first writes, and each returns the run.

    Raises DataError for cells or an output folder that cannot be used, RunError when `resume` meets another run,
    TrainingError when the loss is no number or another process dies, InterruptedFitError on SIGTERM.
    """
    config = config or Config.preset("default")
    split = split or make_split(cells, config.split, seed=config.seed)
    split.check(cells.conditions)
    cells.require_cells((CONTROL, *split.train, *split.validation), at_least=2)
    out = Path(out)
    _require_shares(config, split)
    with together(config.training.accelerator == "cpu", config.training.timeout):
        begins = is_first() and not (resume and (out / NAME).is_file())
        if begins:
            new_folder(out)
        manifest, panel, vocabulary = _prepare(cells, split, config)
        if begins:
            manifest.save(out)
        wait_for_all()
        _same_run(found := Manifest.load(out), manifest, out)
        if not found.digests:
            if is_first():
                _write_inputs(cells, split, panel, vocabulary, config, out)
            wait_for_all()
            data = StepData(cells, split, panel, vocabulary, config, first_step=_step_reached(out))
            _train(data, manifest, out, progress)
            wait_for_all()
        return Run.load(out)


def _require_shares(config: Config, split: Split) -> None:
    """Refuse more processes than a step has conditions."""
    world, n = world_size(config.training), min(config.training.conditions_per_batch, len(split.train))
    if n < world:
        raise ConfigError(
            f"{world} processes share the {n} conditions of a step, expected at least one for each; raise "
            "training.conditions_per_batch (at most the training conditions), or start fewer processes"
        )


def _prepare(cells: CellTable, split: Split, config: Config) -> tuple[Manifest, GenePanel, Vocabulary]:
    """Choose the genes, name the tokens, and say all of it in a manifest."""
    panel = select_genes(cells, split, config.panel)
    every_target = {target for condition in cells.conditions for target in targets(condition)}
    vocabulary = Vocabulary.build(panel.genes, every_target)
    manifest = Manifest(
        format=FORMAT,
        seed=config.seed,
        config=config,
        vocabulary=list(vocabulary.tokens),
        panel=list(panel.genes),
        targets=sorted({target for condition in split.train for target in targets(condition)}),
        split=split.to_dict(),
        scale=cells.scale.to_dict(),
        perturbation_key=cells.perturbation_key,
        control=cells.control,
        data={
            "path": None if cells.source is None else str(cells.source),
            "digest": cells.digest(),
            "n_cells": cells.n,
            "n_genes": len(cells.genes),
        },
        versions=versions(),
    )
    return manifest, panel, vocabulary


def _write_inputs(
    cells: CellTable, split: Split, panel: GenePanel, vocabulary: Vocabulary, config: Config, out: Path
) -> None:
    """Graph, means and control cells, unless they are there: what prediction and evaluation need of the data."""
    columns = cells.columns(panel.genes)
    if config.graph.enabled and not (out / folder.GRAPH).is_file():
        training = np.concatenate([cells.rows(name) for name in (CONTROL, *split.train)])
        graph = coexpression_graph(
            subset(cells.X, np.sort(training), columns), k=config.graph.k,
            negative_edges=config.graph.negative_edges, faithful=config.graph.faithful,
        )  # fmt: skip
        folder.write_graph(out / folder.GRAPH, vocabulary_graph(graph, panel.genes, vocabulary))
    if not (out / folder.MEANS).is_file():
        means = cells.means([CONTROL, *split.train, *split.validation])[list(panel.genes)]
        folder.write_table(out / folder.MEANS, means)
    if config.training.keep_controls and not (out / folder.CONTROLS).is_file():
        rows = cells.rows(CONTROL)
        kept = numpy_rng(config.seed, "kept controls").permutation(rows)[: config.training.keep_controls]
        folder.write_cells(out / folder.CONTROLS, cells, np.sort(kept), columns)


def _same_run(found: Manifest, expected: Manifest, out: Path) -> None:
    """Refuse to resume a run of other options, data or conditions."""
    differing = [
        name
        for name in ("config", "panel", "vocabulary", "split", "scale")
        if getattr(found, name) != getattr(expected, name)
    ] + (["data"] if found.data["digest"] != expected.data["digest"] else [])
    if differing:
        raise RunError(
            f"--resume {out}: this run was started with other {' and '.join(differing)}; "
            "repeat the options and data of its start, or choose another --out"
        )


def _step_reached(out: Path) -> int:
    last = out / CHECKPOINTS / LAST
    return int(read_checkpoint(last)["global_step"]) if last.is_file() else 0


class StepData(L.LightningDataModule):
    """The batches of a fit, and its validation conditions."""

    def __init__(
        self, cells: CellTable, split: Split, panel: GenePanel, vocabulary: Vocabulary, config: Config,
        first_step: int,
    ) -> None:  # fmt: skip
        super().__init__()
        options = config.training
        self.config, self.first_step = config, first_step
        self.gene_ids = torch.from_numpy(vocabulary.gene_ids(panel.genes))
        self.vocabulary = vocabulary
        self.sampler = ConditionSampler(
            cells, split, panel, numpy_rng(config.seed, "sampler"), vocabulary=vocabulary,
            n_conditions=min(options.conditions_per_batch, len(split.train)), n_cells=options.cells_per_condition,
            weights=options.sampling,
        )  # fmt: skip
        self.validation = ValidationConditions(
            cells, panel, vocabulary, split.validation, options.validation_cells, config.seed
        )

    def train_dataloader(self) -> Prefetched:
        """Steps still to take, of each the share of this process."""
        assert self.trainer is not None
        steps = StepBatches(
            self.sampler, self.config.seed, self.config.training.max_steps,
            self.trainer.global_rank, self.trainer.world_size,
        )  # fmt: skip
        return Prefetched(steps, self.first_step, pin=self.trainer.strategy.root_device.type == "cuda")

    def val_dataloader(self) -> Dealt:
        """This process's share of the validation conditions."""
        assert self.trainer is not None
        return Dealt(self.validation, self.trainer.global_rank, self.trainer.world_size)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; names stay."""
        return batch.to(device, non_blocking=True)


def _train(data: StepData, manifest: Manifest, out: Path, progress: bool) -> None:
    """Run Lightning's loop and keep the weights of the best validation, or the last where none is validated."""
    config = manifest.config
    graph = folder.read_graph(out / folder.GRAPH, len(manifest.vocabulary)) if config.graph.enabled else None
    field = folder.build_field(config, data.vocabulary, graph)
    rates = folder.source_rates(folder.read_means(out / folder.MEANS))
    module = FlowModule(field, config, data.gene_ids, rates, len(data.validation))
    trainer = make_trainer(config.training, out, validated=len(data.validation) > 0, progress=progress)
    last = out / CHECKPOINTS / LAST
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(derive(config.seed, "fit"))
        # Conditions to validate lie ready in memory: worker processes would only copy them.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Step s is the same batch in any process: nothing of the data need be restored.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        warnings.filterwarnings(
            "ignore", message=".*LeafSpec.*", category=FutureWarning
        )  # Lightning's, of torch
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
        try:
            trainer.fit(
                module, datamodule=data, ckpt_path=str(last) if data.first_step else None, weights_only=False
            )
        except SystemExit:  # Lightning's answer to Ctrl-C
            raise stopped(trainer.global_step, _step_reached(out), last) from None
    if trainer.is_global_zero:
        _finish(module, trainer, manifest, out)


def _finish(module: FlowModule, trainer: L.Trainer, manifest: Manifest, out: Path) -> None:
    """Write the weights kept, then the manifest that makes the run complete."""
    best = out / CHECKPOINTS / BEST
    result: dict[str, float | int | None] = {"step": trainer.global_step}
    state = {f"field.{name}": value for name, value in module.field.state_dict().items()}
    if best.is_file():
        checkpoint = read_checkpoint(best)
        state = checkpoint["state_dict"]
        result = {"step": checkpoint["global_step"], **_best_score(checkpoint)}
    weights = {
        name.removeprefix("field."): value for name, value in state.items() if name.startswith("field.")
    }
    folder.write_tensors(out / folder.WEIGHTS, weights)
    names = [folder.WEIGHTS, folder.GRAPH, folder.MEANS, folder.CONTROLS]
    digests = {name: folder.file_digest(out / name) for name in names if (out / name).is_file()}
    manifest.model_copy(update={"result": result, "digests": digests}).save(out)


def _best_score(checkpoint: dict[str, Any]) -> dict[str, float]:
    """The validation score of the best checkpoint, from the state of the callback that chose it."""
    for state in checkpoint["callbacks"].values():
        if state.get("monitor") == "val_l2" and state.get("best_model_score") is not None:
            return {"val_l2": float(state["best_model_score"])}
    return {}
