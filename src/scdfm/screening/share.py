"""Which part of a screen this process does, when several do it together."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scdfm.errors import ConfigError, RunError

PATIENCE = 600.0
"""Seconds that the other ranks wait for the first to start the folder."""


@dataclass(frozen=True)
class Share:
    """Process `rank` of `size`: shard i is done by rank i mod size."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] | None = None) -> Share:
        """RANK of WORLD_SIZE, as torchrun and SLURM wrappers set them; alone where neither is set."""
        values = os.environ if environment is None else environment
        texts = values.get("RANK", "0"), values.get("WORLD_SIZE", "1")
        try:
            rank, size = int(texts[0]), int(texts[1])
        except ValueError:
            raise ConfigError(
                f"RANK '{texts[0]}' of WORLD_SIZE '{texts[1]}': expected whole numbers; unset or correct them"
            ) from None
        if not 0 <= rank < size:
            raise ConfigError(
                f"RANK {rank} of WORLD_SIZE {size}: expected 0 ≤ RANK < WORLD_SIZE; correct them"
            )
        return cls(rank, size)

    def mine(self, shards: list[int]) -> list[int]:
        """Those of `shards` that this process does."""
        return [shard for shard in shards if shard % self.size == self.rank]

    def wait_for(self, path: Path, patience: float = PATIENCE) -> None:
        """Wait until the first rank has written `path`; RunError when it does not come."""
        start = time.monotonic()
        while not path.is_file():
            if time.monotonic() - start > patience:
                raise RunError(
                    f"rank {self.rank} waited {patience:.0f} s for rank 0 to write {path}; start rank 0 with the same --out"
                )
            time.sleep(min(0.2, patience))
