"""Files of the official code: checkpoint, vocabulary, graph mask. What they hold is read; none of it is run."""

from __future__ import annotations

import json
import pickle  # its error is caught, nothing is unpickled  # nosec B403
import warnings
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from scdfm.data import Vocabulary
from scdfm.errors import DataError, RunError

STATE_KEYS: Final = ("model_state_dict", "state_dict", "model")
"""Where checkpoints keep the parameters, the official place first."""
PREFIXES: Final = ("module.", "_orig_mod.", "state.")
_NOT_TORCH: Final = (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError)


def load_plain(path: Path) -> Any:
    """The tensors and plain values of a file of torch.save; RunError for anything else, before it could run."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Detected pickle protocol"
            )  # refused below, where it matters
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RunError(
            f"{path} is no torch file of tensors and plain values alone, so it is refused and nothing of it was run; "
            "check the path, or save it again as torch.save(model.state_dict(), ...)"
        ) from error
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except _NOT_TORCH as error:
        raise RunError(f"{path} is not a file of torch.save; check the path") from error


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], int | None]:
    """The parameters of a checkpoint in float32, prefixes of wrappers dropped, and the step it was saved at."""
    loaded = load_plain(path)
    state = next((loaded[key] for key in STATE_KEYS if isinstance(loaded, dict) and key in loaded), loaded)
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(value, Tensor) for value in state.values())
    ):
        raise RunError(
            f"{path}: expected the parameters of a model, by name, under '{STATE_KEYS[0]}' or at the top; "
            "check that it is a checkpoint"
        )
    tensors = {_bare(str(name)): value for name, value in state.items()}
    step = loaded.get("iteration") if state is not loaded else None
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}, (
        step if isinstance(step, int) else None
    )


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def read_vocabulary(path: Path) -> Vocabulary:
    """The official vocabulary: a JSON object of names and ids, which must be 0, 1, 2, ..."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"vocabulary {path} cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise DataError(f"vocabulary {path} is not JSON ({error}); check the path") from error
    if not isinstance(values, dict) or sorted(map(str, values.values())) != sorted(
        map(str, range(len(values)))
    ):
        raise DataError(
            f"vocabulary {path}: expected an object of names with the ids 0, 1, 2, ... once each; check the file"
        )
    return Vocabulary(tuple(sorted(values, key=lambda name: int(values[name]))))


def read_mask(path: Path) -> Tensor:
    """The official mask [V, V]: True where a token may NOT attend."""
    mask = load_plain(path)
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[0] != mask.shape[1]:
        raise RunError(
            f"graph {path}: expected one square tensor, True where a token may not attend; check the file"
        )
    return mask.bool()
