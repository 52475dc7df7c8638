"""Lightning's checkpoints as safetensors: tensors as they are, everything else as JSON in the header. No pickle.

A fit whose numbers run away stops before anything that is no number is written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from scdfm.config import Config
from scdfm.errors import RunError, TrainingError
from scdfm.files import made, written_whole

MONITOR = "val_predicted"
"""The score that chooses the best checkpoint, see `scdfm.training.validation.monitored`."""
CHECKPOINTS, LAST, BEST = "checkpoints", "last.safetensors", "best.safetensors"


class SafetensorsIO(CheckpointIO):
    """Saves and loads a checkpoint dictionary whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`."""
        tensors: dict[str, torch.Tensor] = {}
        tree = _flatten(checkpoint, tensors)
        made(Path(path).parent)
        text = json.dumps(tree)
        size = sum(tensor.nbytes for tensor in tensors.values()) + len(text)
        with written_whole(path, size) as temporary:
            save_file(tensors, temporary, metadata={"tree": text})

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the checkpoint at `path`; RunError when it is damaged.

        Lightning forgets the best score of a folder that was moved, and would keep weights that are worse; so its paths are
        told anew.
        """
        checkpoint, here = read_checkpoint(Path(path)), str(Path(path).parent)
        callbacks = checkpoint.get("callbacks", {})
        # Fits of scdfm 0.1.0 chose by the energy distance of their own populations; they go on by what chooses today.
        callbacks = {name.replace("'val_energy'", f"'{MONITOR}'"): state for name, state in callbacks.items()}
        checkpoint |= {"callbacks": callbacks} if callbacks else {}
        for state in callbacks.values():
            if isinstance(state, dict) and (before := state.get("dirpath")):
                state.update(_moved(state, str(before), here))
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the checkpoint at `path`, if it is there."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint dictionary written by SafetensorsIO."""
    try:
        with safe_open(path, framework="pt") as handle:
            tree = json.loads(handle.metadata()["tree"])
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        checkpoint = _unflatten(tree, tensors)
        if not isinstance(checkpoint, dict):
            raise ValueError(f"expected a dictionary, found a {type(checkpoint).__name__}")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"checkpoint {path} cannot be read ({error}); remove it to resume from an older one") from error
    return checkpoint


def _moved(value: Any, before: str, here: str) -> Any:
    """`value` with the folder `before` at the beginning of its texts replaced by `here`."""
    if isinstance(value, dict):
        return {_moved(key, before, here): _moved(item, before, here) for key, item in value.items()}
    return here + value[len(before) :] if isinstance(value, str) and value.startswith(before) else value


def _flatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON of `value`, its tensors moved to `tensors`; keys that are no text become pairs."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()  # a copy: safetensors refuses shared memory
        return {"tensor": name}
    if isinstance(value, dict):
        return {"items": [[_flatten(key, tensors), _flatten(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_flatten(item, tensors) for item in value]}
    assert value is None or isinstance(value, bool | int | float | str), f"cannot save {type(value)} in a checkpoint"
    return value


def _unflatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "items":
        return {_unflatten(key, tensors): _unflatten(item, tensors) for key, item in inner}
    if kind not in ("list", "tuple"):
        raise ValueError(f"'{kind}' is no kind of value")
    items = [_unflatten(item, tensors) for item in inner]
    return items if kind == "list" else tuple(items)


def diverged(what: str, out: Path, step: int, config: Config) -> TrainingError:
    """The error of a fit in `out` that found `what` at `step`."""
    options, good_step = config.training, last_good(out)
    good = (
        "no checkpoint was written before"
        if good_step is None
        else f"the checkpoint of step {good_step} is good and stays"
    )
    clip = f"lower training.clip_norm (now {options.clip_norm:g})" if options.clip_norm else "set training.clip_norm"
    return TrainingError(
        f"step {step}: {what}; the fit diverged at training.learning_rate {options.learning_rate:g}, and in {out} {good}: "
        f"lower the learning rate or {clip}, and fit into another --out"
    )


def last_good(out: Path) -> int | None:
    """The step of the checkpoint that the run folder `out` holds for resuming."""
    last = out / CHECKPOINTS / LAST
    return int(read_checkpoint(last)["global_step"]) if last.is_file() else None


def require_finite(value: Any, out: Path, step: int, config: Config) -> None:
    """Refuse a tree of weights and optimiser moments that are not all finite."""
    for tensor in _tensors(value):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise diverged("weights are not finite", out, step, config)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for item in value for tensor in _tensors(item)]
