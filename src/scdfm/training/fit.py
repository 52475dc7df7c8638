"""From a table of cells to a run folder: check, open, prepare, train, judge, finish."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from scdfm.config import Config
from scdfm.data import CONTROL, CellTable, Split, make_split
from scdfm.data.validation import DRAWN
from scdfm.errors import ConfigError, RunError
from scdfm.files import file_digest, new_folder, require_replaceable
from scdfm.prior.shrink import NOT_FOLLOWED
from scdfm.processes import in_turn, is_first, together, wait_for_all, world_size
from scdfm.run import Run, folder
from scdfm.run.extrapolation import unknown, untold
from scdfm.run.manifest import NAME, Headroom, Manifest
from scdfm.run.trained import Trained, build_field, source_rates
from scdfm.training.checkpoint import CHECKPOINTS, LAST, last_good, read_checkpoint, require_finite
from scdfm.training.headroom import headroom, told
from scdfm.training.inputs import Features, Inputs, prepare, require_same_run
from scdfm.training.machine import Stopwatch, require_machine, require_memory, steps_within
from scdfm.training.module import FlowModule
from scdfm.training.prepared import Prepared, lineage_of
from scdfm.training.steps import StepData
from scdfm.training.trainer import run_loop
from scdfm.training.transfer import carried_weights, require_kin, tuned
from scdfm.training.validation import Jury, Kept


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
    start_from: Trained | str | Path | None = None,
    overwrite: bool = False,
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
    say: is told, before the first step, which conditions no run of this split can predict, where no validation condition
        can judge what training adds, which features tell nothing of responses, and what steps that follow can gain.
    seconds: a budget of time in place of `training.max_steps`: a short fit tells how many steps it holds, and the config of
        the run says how many they are. A fit that is resumed keeps the number of its start.
    start_from: a run whose weights, vocabulary, features and measured means are carried over (`scdfm.training.transfer`);
        config None is then the run's own with a smaller learning rate. On the run's own screen it is trained for longer.
    overwrite: replace the run that stands in `out`, once everything else is checked; Run objects of it refuse from then on.

    Test cells choose nothing: genes, graph, means and checkpoint come from training and validation conditions.
    Under `torchrun`, or with `training.devices`, several processes share each step (docs/many-machines.md): all
    call this with the same arguments, the first writes, and each returns the run.

    Raises DataError for cells or an output folder that cannot be used, RunError when `resume` meets another run,
    TrainingError when the loss is no number or another process dies, InterruptedFitError on SIGTERM.
    """
    parent = Run.load(start_from) if isinstance(start_from, str | Path) else start_from
    config = config or (tuned(parent) if parent else Config.preset("default"))
    require_machine(config.training)
    split = split or make_split(cells, config.split, seed=config.seed)
    split.check(cells.conditions)
    cells.require_cells((CONTROL, *split.train, *split.validation), at_least=config.training.min_cells)
    out = Path(out).absolute()
    _require_shares(config, split)
    if overwrite:
        _require_overwritable(out, resume, parent)
    if parent:
        cells.require_all_measured("--from")
        require_kin(parent, cells, config)
    config = _as_begun(config, out if resume else None, say)
    if seconds is not None:
        config = _budgeted(seconds, cells, split, config, features, out if resume else None, parent)
    with together(config.training.accelerator == "cpu", config.training.timeout):
        begins = is_first() and not (resume and (out / NAME).is_file())
        if begins and not overwrite:
            new_folder(out)
        drawn, inputs = split, prepare(cells, split, config, features, parent)
        split = _spared(inputs, drawn, out if resume else None)
        if split is not drawn:
            inputs = prepare(cells, split, config, features, parent)
        unjudged = _unjudged(inputs, drawn, config)
        require_memory(inputs)
        if begins and overwrite:
            shutil.rmtree(out, ignore_errors=True)
            new_folder(out)
        if begins:
            _tell(say, _beforehand(inputs, split, drawn, unjudged))
            inputs.manifest.save(out)
        wait_for_all()
        if begins or not _is_finished(out, inputs.manifest):
            prepared = in_turn(lambda: Prepared.load_or_make(cells, split, inputs, out))
            _require_own_checkpoint(out, inputs.manifest)
            can_gain = _headroom(cells, split, prepared)
            _tell(say if begins else None, _once_prepared(prepared, can_gain))
            data = StepData(cells, split, prepared.inputs, first_step=last_good(out) or 0)
            trained = _train(data, prepared, out, progress, unjudged)
            if trained is not None:
                _finish(*trained, inputs.manifest.model_copy(update={"headroom": can_gain}), out)
            wait_for_all()
        return Run.load(out)


def _tell(say: Callable[[str], object] | None, texts: Iterator[str]) -> None:
    if say is not None:
        for text in texts:
            say(text)


def _spared(inputs: Inputs, split: Split, resumed: Path | None) -> Split:
    """The split with those of the drawn validation conditions in training of which nothing would be known without them.

    They could judge nothing, and other conditions need what they tell. Named ones stay, and those of a fit that goes on.
    """
    lost = set(unknown(inputs.encoder, split.validation))
    if not lost or split.kind not in DRAWN:
        return split
    if resumed is not None and (resumed / NAME).is_file() and Manifest.load(resumed).split == inputs.manifest.split:
        return split
    left = tuple(name for name in split.validation if name not in lost)
    return replace(split, train=split.train + tuple(lost), validation=left)


def _beforehand(inputs: Inputs, split: Split, drawn: Split, unjudged: bool) -> Iterator[str]:
    """What a fit will not predict, and where nothing can judge it. drawn: the split before any condition was spared."""
    if spared := sorted(set(drawn.validation).difference(split.validation)):
        yield (
            f"{len(spared)} of {len(drawn.validation)} validation conditions are in training instead, since nothing else "
            f"tells of a target, dose, time or covariate of theirs: {', '.join(spared[:5])}{', ...' if spared[5:] else ''}"
        )
    for names, what in ((split.test, "test conditions"), (split.validation, "validation conditions")):
        if text := untold(unknown(inputs.encoder, names), len(names), what):
            yield text
    if unjudged and inputs.manifest.config.training.max_steps:
        yield (
            "no validation condition can be predicted, so nothing can judge what training adds and the prior alone will be "
            "kept; fit with features of their targets (--features), choose another split or seed, or keep the last weights "
            "(training.keep=last)"
        )


def _headroom(cells: CellTable, split: Split, prepared: Prepared) -> Headroom | None:
    """What training can gain over the prior; None where the flow starts from noise, and in processes that do not write."""
    if prepared.start is None or not is_first():
        return None
    return headroom(prepared.start, cells, split, prepared.inputs.panel, prepared.inputs.manifest.config)


def _once_prepared(prepared: Prepared, can_gain: Headroom | None) -> Iterator[str]:
    """Which features tell nothing, and where training follows, what it can gain."""
    if prepared.silent:
        yield f"features that tell nothing of responses, and are not read: {', '.join(sorted(prepared.silent))}"
    if prepared.inputs.manifest.config.training.max_steps and (text := told(can_gain)):
        yield text


def _unjudged(inputs: Inputs, drawn: Split, config: Config) -> bool:
    """Whether weights would be kept by their validation, and no condition that validates can be predicted.

    drawn: the split before any condition was spared. Who asks for no validation at all gets the last weights.
    """
    validation = inputs.manifest.split["validation"]
    against_prior = config.flow.source == "prior" and config.training.keep == "best"
    return against_prior and bool(drawn.validation) and len(validation) == len(unknown(inputs.encoder, validation))


def _require_overwritable(out: Path, resume: bool, parent: Trained | None) -> None:
    """Refuse to replace what is no run, or what the fit itself needs."""
    if resume:
        raise ConfigError(f"fit: --resume and --overwrite contradict each other for {out}; give one of them")
    if parent and parent.path == out:
        raise ConfigError(f"fit: {out} is the run to start from and cannot be overwritten; choose another --out")
    require_replaceable(out, NAME)


def _as_begun(config: Config, resumed: Path | None, say: Callable[[str], object] | None) -> Config:
    """The config for a fit that goes on: one that 0.1.0 began knew random pairs alone, and keeps them."""
    if resumed is None or not (resumed / NAME).is_file():
        return config
    begun = Manifest.load(resumed)
    if begun.versions["scdfm"] == "0.1.0" and config.flow.pairing != begun.config.flow.pairing == "random":
        if say is not None and not begun.digests:
            say("the fit was begun by scdfm 0.1.0 and goes on with its random pairs (flow.pairing)")
        return config.updated({"flow": {"pairing": "random"}})
    return config


def _is_finished(out: Path, expected: Manifest) -> bool:
    """Whether the run in `out`, begun before or by another process, is whole; RunError where it is another one."""
    manifest = Manifest.load(out)
    require_same_run(manifest, expected, out)
    return bool(manifest.digests)


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


def _budgeted(
    seconds: float, cells: CellTable, split: Split, config: Config,
    features: Features | Sequence[Features] | None, resumed: Path | None, parent: Trained | None,
) -> Config:  # fmt: skip
    """The config with as many steps as the time holds, or as the resumed fit began with."""
    if world_size(config.training) > 1 or not config.training.max_steps:
        what = "training.max_steps 0" if not config.training.max_steps else "several processes"
        raise ConfigError(f"time {seconds:g} s: it cannot be given with {what}; give training.max_steps instead")
    if resumed is not None and (resumed / NAME).is_file():
        steps = Manifest.load(resumed).config.training.max_steps
    else:

        def probe(short: Config, folder: Path, watch: Stopwatch) -> None:
            inputs = prepare(cells, split, short, features, parent)
            prepared = Prepared.load_or_make(cells, split, inputs, folder)
            _train(StepData(cells, split, prepared.inputs, 0), prepared, folder, progress=False, watch=watch)

        steps = steps_within(seconds, config, probe)
    return config.updated({"training": {"max_steps": steps}}, where="time")


def _train(
    data: StepData,
    prepared: Prepared,
    out: Path,
    progress: bool,
    unjudged: bool = False,
    watch: Stopwatch | None = None,
) -> tuple[Kept, int] | None:
    """Train, unless there is nothing to train: the weights that are kept, and the last step; None in other processes.

    unjudged: nothing can tell whether training pays, so the prior is kept.
    """
    config, encoder, start = data.config, data.inputs.encoder, prepared.start
    field = build_field(config, encoder, prepared.graph)
    if not config.training.max_steps:
        return (Kept(field.state_dict(), {"step": 0}), 0) if is_first() else None
    validated = len(data.validation) > 0
    untrained = copy.deepcopy(field) if start is not None else None
    if (parent := data.inputs.parent) is not None:  # a fit of no steps is the prior alone
        field.load_state_dict(carried_weights(parent, field, encoder, prepared.graph))
    rates, jury = source_rates(prepared.means), None
    if start is not None and untrained is not None and validated:
        jury = Jury(data.validation.batches, config, data.gene_ids, start, untrained)
    module = FlowModule(
        field, config, data.gene_ids, rates, len(data.validation), start, data.measured,
        untrained=None if jury is None else jury.of_prior(),
    )  # fmt: skip
    trainer = run_loop(module, data, config, out, progress, [] if watch is None else [watch])
    if not trainer.is_global_zero or watch is not None:
        return None
    best = config.training.keep == "best" and validated
    kept = Kept.best(out) if best else Kept.last(module.field, trainer.global_step, out)
    if untrained is not None and unjudged:
        kept = Kept(untrained.state_dict(), {"step": 0})  # as where validation leaves it open
    elif jury is not None:
        kept = jury.judged(kept)
    elif start is not None and config.sampling.shrink:  # nobody says how far its means can be believed
        kept = kept._replace(shrinkage=NOT_FOLLOWED)
    return kept, trainer.global_step


def _finish(kept: Kept, step: int, manifest: Manifest, out: Path) -> None:
    """Write the weights kept, then the manifest that makes the run complete."""
    require_finite(kept.weights, out, step, manifest.config)
    folder.write_tensors(out / folder.WEIGHTS, kept.weights)
    digests = {name: file_digest(out / name) for name in folder.FILES if (out / name).is_file()}
    outcome = {"result": kept.result, "shrinkage": kept.shrinkage, "digests": digests}
    manifest.model_copy(update=outcome | {"lineage": lineage_of(manifest, out)}).save(out)
