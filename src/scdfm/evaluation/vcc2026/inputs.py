"""Which options and cells go with which protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scdfm.data.cells import CellTable
from scdfm.errors import ConfigError
from scdfm.evaluation.vcc2026.counts import Counts, read_counts


def refuse_options(given: Mapping[str, bool], protocol: str) -> None:
    """Raise ConfigError for the first option that is `given` though it has no effect under `protocol`."""
    for option in (name for name, there in given.items() if there):
        raise ConfigError(
            f"{option} is no option of protocol {protocol}; leave it out, or choose another protocol"
        )


def counted(
    predicted: Any,
    real: Any,
    control: str,
    key: str | None,
    subset: Mapping[str, str] | None,
    layer: str | None,
) -> tuple[Counts | None, Counts]:
    """Both sides as counts; the real ones from `layer`, if they are not read yet."""
    for side in (predicted, real):
        if isinstance(side, CellTable):
            raise ConfigError(
                "protocol vcc2026 scores raw counts, and a CellTable holds log1p values; give the file, an AnnData, or "
                "scdfm.read_counts(path, layer=...)"
            )
    key = key or "perturbation"
    if isinstance(real, Counts) and (subset or layer):
        raise ConfigError("subset and layer go with a file or an AnnData; give them to read_counts")
    truth = real if isinstance(real, Counts) else read_counts(real, key, control, layer, subset)
    if predicted is None or isinstance(predicted, Counts):
        return predicted, truth
    return read_counts(predicted, key, control, None, subset, need_control=False), truth


def log1p_cells(cells: Any) -> Any:
    """`cells`, unless they were read as counts."""
    if isinstance(cells, Counts):
        raise ConfigError(
            "read_counts goes with protocol vcc2026; other protocols score log1p values (read_cells)"
        )
    return cells
