"""Features of perturbations: Morgan fingerprints of drugs, or any table of numbers by name.

They say of a perturbation that was never measured what it has in common with those that were.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from scdfm.data.conditions import near, targets
from scdfm.data.knowledge import KINDS, read_known
from scdfm.errors import ConditionError, DataError

if TYPE_CHECKING:
    from rdkit.Chem.rdFingerprintGenerator import FingerprintGenerator64

Float32 = npt.NDArray[np.float32]
MORGAN: Final = "morgan"
TABLE: Final = "table"
COEXPRESSION: Final = "coexpression"
"""Features of genes made of a screen's own control cells (`scdfm.data.graph.coexpression_axes`)."""
SMILES: Final = "smiles"
"""Name (in any case) of the column that makes a csv file one of molecules."""
_BIT_SPREAD: Final = 0.5  # the largest standard deviation that a column of 0 and 1 can have


class Part(NamedTuple):
    """One description within a table: what it is, its number of columns, and whether these have one scale already."""

    kind: str
    width: int
    scaled: bool = False


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features of perturbations: `values` [n, F] float32, one row for each of `names`; `kind` says what they are.

    parts: the descriptions whose columns stand side by side; one unless given. known: bool [n, parts], what each knows of
    a name (all unless given): a row of one that knows nothing is 0 once standardised.

    DataError where shapes do not fit, a name stands twice or is empty, or a value is not finite.
    """

    names: tuple[str, ...]
    values: Float32
    kind: str = TABLE
    parts: tuple[Part, ...] = ()
    known: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        names = tuple(str(name).strip() for name in self.names)
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
            values = np.ascontiguousarray(self.values, dtype=np.float32)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "values", values)
        if values.ndim != 2 or len(values) != len(names) or not values.size:
            raise DataError(
                f"features ({self.kind}): {len(names)} names and values of shape {values.shape}; expected one row "
                "of at least one feature for each name"
            )
        parts = self.parts or (Part(self.kind, values.shape[1]),)
        known = np.ones((len(names), len(parts)), dtype=np.bool_) if self.known is None else self.known
        assert sum(part.width for part in parts) == values.shape[1]
        assert known.shape == (len(names), len(parts))
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "known", known)
        if not all(names):
            raise DataError(f"features ({self.kind}): row {names.index('')} has no name; name it or drop it")
        repeated = pd.Index(names).duplicated()
        if repeated.any():
            raise DataError(
                f"features ({self.kind}): '{names[int(repeated.argmax())]}' stands in more than one row; keep one"
            )
        bad = ~np.isfinite(values)
        if bad.any():
            row, column = (int(place[0]) for place in np.nonzero(bad))
            raise DataError(
                f"features ({self.kind}): {values[row, column]:g} for '{names[row]}' in feature {column} "
                f"({int(bad.sum())} such values); expected finite numbers: fill them in, or drop the row or column"
            )

    @property
    def n_features(self) -> int:
        """F, the number of features."""
        return int(self.values.shape[1])

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def restricted(self, names: Iterable[str]) -> FeatureTable:
        """The rows of `names`, in their order; ConditionError names the first that has no features."""
        names = list(names)
        if missing := [name for name in names if name not in self._places]:
            raise ConditionError(
                f"{len(missing)} of {len(names)} perturbations have no features (first: '{missing[0]}'); expected a "
                f"row for each: add it to the table of features{near(missing[0], self.names)}"
            )
        rows = [self._places[name] for name in names]
        return FeatureTable(tuple(names), self.values[rows], self.kind, self.parts, self._known[rows])

    def rows_of(self) -> dict[str, dict[str, Float32]]:
        """By the kind of each part the row of every name that it knows."""
        ends = np.cumsum([part.width for part in self.parts])
        return {
            part.kind: {self.names[row]: self.values[row, end - part.width : end] for row in np.flatnonzero(known)}
            for part, end, known in zip(self.parts, ends, self._known.T, strict=True)
        }

    def standardiser(self, reference: Iterable[str] | None = None) -> Standardiser:
        """What brings features to one scale, learned on the rows of `reference` (default: all).

        Name the perturbations of training here: those of the test then choose nothing. A column is centred and
        divided by its standard deviation; one of 0 and 1 alone (a bit) is divided by ½, the most its deviation can
        be, so that rare bits do not drown the others; columns of one scale are divided by the root mean square of their
        deviations. A column that is constant over the reference becomes 0 for everybody: nothing can be learned from it.
        """
        table = self if reference is None else self.restricted(reference)
        scales = [
            _scale(values[known].astype(np.float64), part.scaled)
            for part, values, known in zip(self.parts, table._columns(), table._known.T, strict=True)
        ]
        centre, factor = (np.concatenate(each).astype(np.float32) for each in zip(*scales, strict=True))
        return Standardiser(centre, factor)

    def _columns(self) -> list[Float32]:
        """The columns of each part."""
        return np.split(self.values, np.cumsum([part.width for part in self.parts])[:-1], axis=1)

    @property
    def _known(self) -> npt.NDArray[np.bool_]:
        assert self.known is not None
        return self.known

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.names)}


@dataclass(frozen=True, eq=False)
class Standardiser:
    """(value − centre) · factor, feature by feature; both are [F] float32."""

    centre: Float32
    factor: Float32

    def __call__(self, features: FeatureTable) -> FeatureTable:
        """`features` on the scale of the reference; DataError where they are of another number."""
        if features.n_features != len(self.centre):
            raise DataError(
                f"features ({features.kind}): {features.n_features} of each perturbation, expected "
                f"{len(self.centre)}; give the features that the model was fitted with"
            )
        known = np.repeat(features._known, [part.width for part in features.parts], axis=1)
        values = (features.values - self.centre) * self.factor * known
        return replace(features, values=values)

    def without(self, silent: Collection[str], parts: Sequence[Part]) -> Standardiser:
        """This, where the `silent` ones of the `parts` become 0 for everybody: nothing can be read from them."""
        heard = np.repeat([part.kind not in silent for part in parts], [part.width for part in parts])
        return replace(self, factor=np.where(heard, self.factor, np.float32(0)))


def _scale(values: npt.NDArray[np.float64], scaled: bool) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Centre and factor of the columns of one part, whose known rows are `values`."""
    if not len(values):
        return np.zeros(values.shape[1]), np.zeros(values.shape[1])
    spread = values.std(axis=0)
    constant = np.ptp(values, axis=0) == 0
    spread[np.isin(values, (0.0, 1.0)).all(axis=0)] = _BIT_SPREAD
    if scaled:
        spread[:] = np.sqrt(np.square(values.std(axis=0)).mean())
    factor = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, spread))
    return values.mean(axis=0), factor


def combine(tables: Sequence[FeatureTable]) -> FeatureTable:
    """The columns of all tables side by side, for every name that at least one of them knows, sorted.

    Where a table lacks a name stands that table's mean row, which standardising makes 0: nothing known from it.
    """
    if not tables:
        raise DataError("features: no table to combine, expected at least one")
    if len(tables) == 1:
        return tables[0]
    names = sorted({name for part in tables for name in part.names})
    columns, known, parts = [], [], list[Part]()
    for table in tables:
        here = [place for place, name in enumerate(names) if name in table]
        rows = table.restricted(names[place] for place in here)
        values = np.tile(table.values.mean(axis=0), (len(names), 1))
        knows = np.zeros((len(names), len(table.parts)), dtype=np.bool_)
        values[here], knows[here] = rows.values, rows._known
        columns.append(values)
        known.append(knows)
        for part in table.parts:
            twice = sum(part.kind in (one.kind, one.kind.rpartition(" no. ")[0]) for one in parts)
            parts.append(part._replace(kind=f"{part.kind} no. {twice + 1}") if twice else part)
    kind = " + ".join(table.kind for table in tables)
    return FeatureTable(tuple(names), np.hstack(columns), kind, tuple(parts), np.hstack(known))


def morgan(smiles: Mapping[str, str] | pd.DataFrame | str | Path, bits: int = 1024, radius: int = 2) -> FeatureTable:
    """Morgan fingerprints (0 or 1, `bits` of them) of molecules by name.

    smiles: name → SMILES, or a table or csv file with a column `smiles` (in any case) whose first other column
        holds the names (a table's index where there is no other). radius: bonds that a substructure reaches; 2 is ECFP4.

    Needs rdkit: pip install 'scdfm[drugs]'. DataError names a SMILES that is missing or that rdkit cannot read.
    """
    if bits < 1 or radius < 0:
        raise DataError(f"morgan: bits is {bits} and radius {radius}; expected at least 1 bit and a radius from 0")
    pairs = list(dict.fromkeys(_molecules(smiles)))  # the same line twice says nothing else
    generator = _generator(bits, radius)
    rows = [_fingerprint(generator, name, text) for name, text in pairs]
    return FeatureTable(
        tuple(name for name, _ in pairs), np.array(rows, dtype=np.float32).reshape(len(rows), bits), MORGAN
    )


def _molecules(smiles: Mapping[str, str] | pd.DataFrame | str | Path) -> list[tuple[str, object]]:
    if isinstance(smiles, str | Path):
        smiles = _read_csv(Path(smiles))
    if isinstance(smiles, Mapping):
        return [(str(name), text) for name, text in smiles.items()]
    column = smiles_column(smiles)
    if column is None:
        raise DataError(
            f"morgan: no column 'smiles'; expected names and SMILES under a header such as name,smiles; found the "
            f"columns {', '.join(map(str, smiles.columns)) or 'none'}"
        )
    others = [name for name in smiles.columns if name != column]
    names = smiles[others[0]] if others else smiles.index.to_series()
    return list(zip(names.astype(str), smiles[column], strict=True))


def smiles_column(frame: pd.DataFrame) -> str | None:
    """The column of a table that is called `smiles`, in any case; None where there is none."""
    return next((str(name) for name in frame.columns if str(name).strip().lower() == SMILES), None)


def _generator(bits: int, radius: int) -> FingerprintGenerator64:
    try:
        from rdkit.Chem import rdFingerprintGenerator
    except ImportError as error:
        raise DataError("Morgan fingerprints need rdkit, which is not installed: pip install 'scdfm[drugs]'") from error
    return rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=bits)


def _fingerprint(generator: FingerprintGenerator64, name: str, text: object) -> npt.NDArray[np.uint8]:
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():  # what rdkit prints of a broken SMILES is said by the error
        molecule = Chem.MolFromSmiles(text.strip()) if isinstance(text, str) and text.strip() else None
    if molecule is None:
        raise DataError(
            f"SMILES of '{name}' is {text!r}, which rdkit cannot read; expected a molecule: correct it, or leave it out"
        )
    return np.asarray(generator.GetFingerprintAsNumPy(molecule))


def table(source: str | Path | pd.DataFrame, axis: Literal["obs", "var"] = "obs") -> FeatureTable:
    """The features of a table with names in its first column or index and numbers in all others.

    source: a DataFrame, or a file: .csv and .tsv (names in the first column), .parquet, or .h5ad, whose X is read,
        with the names of `axis`: cells' (obs) or genes' (var).
    """
    if isinstance(source, pd.DataFrame):
        return _of_frame(source, "DataFrame")
    path = Path(source)
    if path.suffix in (".csv", ".tsv"):
        return _of_frame(_read_csv(path), path.name)
    if path.suffix == ".parquet":
        return _of_frame(_read_parquet(path), path.name)
    if path.suffix == ".h5ad":
        return _of_h5ad(path, axis)
    raise DataError(f"features {path}: expected a file that ends in .csv, .tsv, .parquet or .h5ad")


def read(
    spec: str | Path | Sequence[str | Path],
    obs: pd.DataFrame | None = None,
    perturbation_key: str = "perturbation",
    names: Collection[str] = (),
) -> FeatureTable:
    """The features that a spelling of the command line stands for; several are put together (`combine`).

    FILE.csv with a column `smiles` gives Morgan fingerprints; any other FILE.csv, .tsv, .parquet or .h5ad a table
    (`FILE.h5ad:var` takes the names of its genes); `smiles:COLUMN` reads the SMILES of each target from a column
    of `obs`, the cells' table of a screen (`CellTable.obs`) with canonical conditions in `perturbation_key`.
    `go:FILE[,OBO]`, `gmt:FILE` and `edges:FILE` read what is known of genes, by the `names` of a screen's genes and
    targets (`scdfm.data.knowledge`).
    """
    if not isinstance(spec, str | Path):
        return combine([read(part, obs, perturbation_key, names) for part in spec])
    text = str(spec)
    if text.partition(":")[0] in KINDS:
        knowledge = read_known(text, names)
        part = Part(knowledge.kind, knowledge.values.shape[1], scaled=True)
        return FeatureTable(knowledge.names, knowledge.values, knowledge.kind, (part,))
    if text.startswith(f"{SMILES}:"):
        if obs is None:
            raise DataError(f"features '{text}': expected a screen whose obs holds the column; give a file instead")
        return morgan(_obs_smiles(obs, text.removeprefix(f"{SMILES}:"), perturbation_key))
    if text.endswith(".h5ad:var"):
        return table(text.removesuffix(":var"), axis="var")
    if Path(text).suffix in (".csv", ".tsv") and smiles_column(frame := _read_csv(Path(text))) is not None:
        return morgan(frame)
    return table(text)


def _obs_smiles(obs: pd.DataFrame, column: str, key: str) -> dict[str, str]:
    """SMILES by target, from the cells with one target."""
    for name in (column, key):
        if name not in obs.columns:
            columns = [str(other) for other in obs.columns]
            raise DataError(
                f"features 'smiles:{column}': '{name}' is not in obs; its columns are "
                f"{', '.join(columns)}{near(name, columns)}"
            )
    pairs = obs[[key, column]].astype(object).drop_duplicates()
    smiles: dict[str, str] = {}
    for condition, text in pairs.itertuples(index=False):
        members = targets(str(condition))
        if len(members) != 1:
            continue
        if smiles.setdefault(members[0], text) != text:
            raise DataError(
                f"features 'smiles:{column}': '{members[0]}' has the SMILES {smiles[members[0]]!r} and {text!r}; "
                "expected one: correct the column"
            )
    return smiles


def _of_frame(frame: pd.DataFrame, name: str) -> FeatureTable:
    """Names are the index where it holds texts, else the first column."""
    if len(frame.columns) and not pd.api.types.is_string_dtype(frame.index):
        frame = frame.set_index(frame.columns[0])
    for column in frame.columns:
        if len(frame) and not pd.api.types.is_numeric_dtype(frame[column]):
            example = frame[column].iloc[0]
            raise DataError(
                f"features {name}: column '{column}' is not of numbers (first value {example!r}); expected names in "
                "the first column and numbers in all others: drop or encode it; a .csv of molecules has the columns name "
                "and smiles"
            )
    if pd.Index(frame.index).isna().any():
        raise DataError(f"features {name}: a row has no name; name it or drop it")
    values = frame.to_numpy(dtype=np.float64, na_value=np.nan)
    return FeatureTable(tuple(frame.index.astype(str)), values, f"{TABLE} {name}")


def _of_h5ad(path: Path, axis: Literal["obs", "var"]) -> FeatureTable:
    from scdfm.data.source import open_source

    if axis not in ("obs", "var"):
        raise DataError(f"features {path}: axis is '{axis}'; expected 'obs' or 'var'")
    with open_source(path) as source:
        values = source.matrix(None)[:]
        names = source.obs.index.astype(str) if axis == "obs" else source.genes
    values = np.asarray(values.toarray() if hasattr(values, "toarray") else values)
    if values.dtype.kind not in "buif":
        raise DataError(f"features {path}: X holds values of type {values.dtype}; expected real numbers")
    return FeatureTable(tuple(names), values if axis == "obs" else values.T, f"{TABLE} {path.name}")


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",")
    except (OSError, ValueError) as error:  # pandas' parsing errors are ValueErrors
        raise DataError(f"features {path} cannot be read as a table ({error}); check the file") from error


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:
        raise DataError(f"features {path} cannot be read as parquet ({error}); check the file") from error
