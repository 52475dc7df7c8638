"""Every random draw comes from the user's seed and the place of the draw, so that any draw can be repeated alone.

A stream is named by a path of words and numbers, e.g. ("noise", step). Streams of different paths are
independent; the same seed and path give the same stream in any process, in any order, after any resume.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the stream called `path` under the user's `seed`."""
    text = "/".join([str(int(seed)), *map(str, path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_rng(seed: int, *path: str | int) -> np.random.Generator:
    """numpy's Generator for the stream called `path`."""
    return np.random.default_rng(derive(seed, *path))


def torch_rng(seed: int, *path: str | int) -> torch.Generator:
    """torch's CPU Generator for the stream called `path`; draws move to the device afterwards."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *path))
