"""From a table of cells to a run folder: panel, graph, means, then the loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from scdfm.config import Config
from scdfm.data import CONTROL, CellTable, ConditionSampler, Split, make_split
from scdfm.errors import ConfigError, RunError
from scdfm.files import file_digest, new_folder
from scdfm.processes import is_first, together, wait_for_all, world_size
from scdfm.run import Run, folder
from scdfm.run.extrapolation import unknown, untold
from scdfm.run.manifest import NAME, Manifest
from scdfm.run.trained import build_field, source_rates
from scdfm.seeds import derive, numpy_rng
from scdfm.training.budget import Stopwatch, steps_within
from scdfm.training.checkpoint import BEST, CHECKPOINTS, LAST, read_checkpoint
from scdfm.training.divergence import last_good, require_finite
from scdfm.training.inputs import Features, Inputs, prepare, require_same_run, write_inputs
from scdfm.training.interruption import stopped
from scdfm.training.judge import Jury, Kept
from scdfm.training.machine import require_machine, require_memory
from scdfm.training.module import FlowModule
from scdfm.training.start import prior_start
from scdfm.training.steps import Dealt, Prefetched, StepBatches, ValidationConditions
from scdfm.training.trainer import make_trainer


def fit(
    cells: CellTable,
    split: Split | None = None,
    config: Config | None = None,
    *,
    out: str | Path,
    features: Features | Sequence[Features] | None = None,
    resume: bool = False,
    progress: bool = True,
    say: Callable[[str], object] | None = None,
    seconds: float | None = None,
) -> Run:
    """Train a velocity field on the training conditions of `split` and leave a run folder at `out`.

    cells: log1p expression of control and perturbed cells (`read_cells`), with the covariates, doses and times that
        its conditions hold.
    split: None makes the one that `config.split` describes.
    config: None is the preset `default`.
    features: what describes perturbations, beside `model.features` of the config: tables (`scdfm.data.features`),
        DataFrames, or spellings of files. With them targets that no training condition holds can be predicted.
    resume: continue the fit that was interrupted in `out`; on CPU the weights are, bit for bit, those of an
        uninterrupted one. A finished run is returned as it is; an empty `out` starts a new fit.
    say: is told, before the first step, which test conditions no run of this split can predict.
    seconds: a budget of time in place of `training.max_steps`: a short fit tells how many steps it holds, and the config of
        the run says how many they are. A fit that is resumed keeps the number of its start.

    Test cells choose nothing: genes, graph, means and checkpoint come from training and validation conditions.
    Under `torchrun`, or with `training.devices`, several processes share each step (docs/many-machines.md): all
    call this with the same arguments, the first writes, and each returns the run.

    Raises DataError for cells or an output folder that cannot be used, RunError when `resume` meets another run,
    TrainingError when the loss is no number or another process dies, InterruptedFitError on SIGTERM.
    """
    config = config or Config.preset("default")
    require_machine(config.training)
    split = split or make_split(cells, config.split, seed=config.seed)
    split.check(cells.conditions)
    cells.require_cells((CONTROL, *split.train, *split.validation), at_least=config.training.min_cells)
    out = Path(out).absolute()
    _require_shares(config, split)
    if seconds is not None:
        config = _budgeted(seconds, cells, split, config, features, out if resume else None)
    with together(config.training.accelerator == "cpu", config.training.timeout):
        begins = is_first() and not (resume and (out / NAME).is_file())
        if begins:
            new_folder(out)
        inputs = prepare(cells, split, config, features)
        require_memory(inputs)
        if begins:
            if say is not None and (text := untold(unknown(inputs.encoder, split.test), len(split.test))):
                say(text)
            inputs.manifest.save(out)
        wait_for_all()
        require_same_run(found := Manifest.load(out), inputs.manifest, out)
        if not found.digests:
            if is_first():
                write_inputs(cells, split, inputs, out)
                if config.flow.source == "prior":
                    prior_start(cells, split, inputs, out)
            wait_for_all()
            _require_own_checkpoint(out, inputs.manifest)
            data = StepData(cells, split, inputs, first_step=last_good(out) or 0)
            _train(data, inputs.manifest, out, progress)
            wait_for_all()
        return Run.load(out)


def _budgeted(
    seconds: float, cells: CellTable, split: Split, config: Config,
    features: Features | Sequence[Features] | None, resumed: Path | None,
) -> Config:  # fmt: skip
    """The config with as many steps as the time holds, or as the resumed fit began with."""
    if world_size(config.training) > 1 or not config.training.max_steps:
        what = "training.max_steps 0" if not config.training.max_steps else "several processes"
        raise ConfigError(
            f"time {seconds:g} s: it cannot be given with {what}; give training.max_steps instead"
        )
    if resumed is not None and (resumed / NAME).is_file():
        steps = Manifest.load(resumed).config.training.max_steps
    else:

        def probe(short: Config, folder: Path, watch: Stopwatch) -> None:
            inputs = prepare(cells, split, short, features)
            write_inputs(cells, split, inputs, folder)
            _train(StepData(cells, split, inputs, 0), inputs.manifest, folder, progress=False, watch=watch)

        steps = steps_within(seconds, config, probe)
    return config.updated({"training": {"max_steps": steps}}, where="time")


def _require_shares(config: Config, split: Split) -> None:
    """Refuse more processes than a step has conditions."""
    world, n = world_size(config.training), min(config.training.conditions_per_batch, len(split.train))
    if n < world:
        raise ConfigError(
            f"{world} processes share the {n} conditions of a step, expected at least one for each; raise "
            "training.conditions_per_batch (at most the training conditions), or start fewer processes"
        )


def _require_own_checkpoint(out: Path, manifest: Manifest) -> None:
    """Refuse a checkpoint that another fit left, or somebody put there."""
    last = out / CHECKPOINTS / LAST
    if last.is_file() and read_checkpoint(last).get(StepData.__qualname__) != {"fit": manifest.identity}:
        raise RunError(f"checkpoint {last} is of another fit; put the one of this run back, or remove it")


class StepData(L.LightningDataModule):
    """The batches of a fit, and its validation conditions."""

    def __init__(self, cells: CellTable, split: Split, inputs: Inputs, first_step: int) -> None:
        super().__init__()
        config, controls = inputs.manifest.config, inputs.manifest.control_populations
        options = config.training
        self.cells, self.split, self.inputs = cells, split, inputs
        self.config, self.first_step = config, first_step
        self.gene_ids = torch.from_numpy(inputs.vocabulary.gene_ids(inputs.panel.genes))
        self.sampler = ConditionSampler(
            cells, split, inputs.panel, numpy_rng(config.seed, "sampler"), encoder=inputs.encoder,
            n_conditions=min(options.conditions_per_batch, len(split.train) + len(controls)),
            n_cells=options.cells_per_condition, weights=options.sampling, control_populations=controls,
        )  # fmt: skip
        self.validation = ValidationConditions(
            cells, inputs.panel, inputs.encoder, split.validation, options, config.seed
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says of the fit it belongs to."""
        return {"fit": self.inputs.manifest.identity}

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


def _train(
    data: StepData, manifest: Manifest, out: Path, progress: bool, watch: Stopwatch | None = None
) -> None:
    """Train, unless there is nothing to train, and keep the weights that validate best."""
    config = manifest.config
    graph = folder.read_graph(out / folder.GRAPH, len(manifest.vocabulary)) if config.graph.enabled else None
    shape = data.inputs.encoder.shape(null=config.training.condition_dropout > 0)
    field = build_field(config, data.inputs.vocabulary, graph, shape)
    start = prior_start(data.cells, data.split, data.inputs, out) if config.flow.source == "prior" else None
    if not config.training.max_steps:
        if is_first():
            _finish(Kept(field.state_dict(), {"step": 0}), 0, manifest, out)
        return
    rates = source_rates(folder.read_means(out / folder.MEANS))
    module = FlowModule(field, config, data.gene_ids, rates, len(data.validation), start)
    trainer = _loop(module, data, config, out, progress, watch)
    if trainer.is_global_zero and watch is None:
        validated = len(data.validation) > 0
        chosen = config.training.keep == "best" and validated
        kept = _best(out) if chosen else _last(module, trainer.global_step, out)
        if validated and start is not None:
            fresh = build_field(config, data.inputs.vocabulary, graph, shape)
            jury = Jury(data.validation.batches, config, module.gene_ids.cpu(), start.to("cpu"))
            kept = jury.judged(kept, fresh)
        _finish(kept, trainer.global_step, manifest, out)


def _loop(
    module: FlowModule, data: StepData, config: Config, out: Path, progress: bool, watch: Stopwatch | None
) -> L.Trainer:
    """Run Lightning's loop to the end."""
    trainer = make_trainer(config.training, out, validated=len(data.validation) > 0, progress=progress)
    if watch is not None:
        trainer.callbacks.append(watch)  # type: ignore[attr-defined]
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


def _best(out: Path) -> Kept:
    """The weights of the best validation."""
    checkpoint = read_checkpoint(out / CHECKPOINTS / BEST)
    return Kept(_weights(checkpoint), {"step": checkpoint["global_step"], **checkpoint["scores"]})


def _last(module: FlowModule, step: int, out: Path) -> Kept:
    """The weights of the last step.

    From the checkpoint where it is of that step: a fit that is resumed there takes no step any more, and the module
    then holds the weights that are trained, not their average.
    """
    last = out / CHECKPOINTS / LAST
    if last.is_file() and (checkpoint := read_checkpoint(last))["global_step"] == step:
        return Kept(_weights(checkpoint), {"step": step})
    return Kept(module.field.state_dict(), {"step": step})


def _weights(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The (averaged) weights of the field in a checkpoint."""
    state, prefix = checkpoint["state_dict"], "field."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _finish(kept: Kept, step: int, manifest: Manifest, out: Path) -> None:
    """Write the weights kept, then the manifest that makes the run complete."""
    require_finite(kept.weights, out, step, manifest.config)
    folder.write_tensors(out / folder.WEIGHTS, kept.weights)
    digests = {name: file_digest(out / name) for name in folder.FILES if (out / name).is_file()}
    manifest.model_copy(update={"result": kept.result, "shrinkage": kept.shrinkage, "digests": digests}).save(
        out
    )
