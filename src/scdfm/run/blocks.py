"""What a flow has solved so far of a shard that takes long, so that a stop loses less than a minute of it.

    FOLDER/000000-HOST-PROCESS.safetensors    the ends of some blocks, by name; each file whole or not there

A block is the end of some genes of some cells of one condition, named by all of them (`scdfm.flow.generate`).
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open

from scdfm.errors import StorageError
from scdfm.files import made, remove
from scdfm.flow import Keep
from scdfm.run.folder import write_tensors

SECONDS: Final = 20.0
"""Between two files of blocks."""
clock: Callable[[], float] = time.monotonic


class Blocks:
    """The blocks of one shard in `folder`; what an earlier process left there is found again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {name: path for path in sorted(folder.glob("*.safetensors")) for name in _names(path)}
        self.fresh: dict[str, torch.Tensor] = {}
        self.written = clock()

    def of(self, condition: str) -> Keep:
        """What `generate` asks for the blocks of a condition."""

        def kept(block: str, solve: Callable[[], torch.Tensor]) -> torch.Tensor:
            name = f"{condition}/{block}"
            if name in self.files:
                with contextlib.suppress(SafetensorError, OSError), safe_open(self.files[name], "pt") as file:
                    cells: torch.Tensor = file.get_tensor(name)
                    return cells
            solved = self.fresh[name] = solve().contiguous()
            if clock() - self.written >= SECONDS:
                self.write()
            return solved

        return kept

    def write(self) -> None:
        """Write what was solved since the last file; another process may do the same shard."""
        number = len(set(self.files.values()))
        path = made(self.folder) / f"{number:06d}-{platform.node()}-{os.getpid()}.safetensors"
        try:
            write_tensors(path, self.fresh)
        except StorageError:
            if self.folder.is_dir():  # else the other process has finished the shard
                raise
        self.files |= dict.fromkeys(self.fresh, path)
        self.fresh, self.written = {}, clock()

    def remove(self) -> None:
        """The shard is whole: its blocks go, at the latest with all parts."""
        with contextlib.suppress(OSError):
            remove(self.folder)


def _names(path: Path) -> list[str]:
    """The blocks in a file; none where it cannot be read, and they are solved again."""
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError):
        remove(path)
        return []
