"""The inspection of one file: guesses, numbers, pitfalls, and the fit line that follows from them."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdfm.data import gene_names, kinds
from scdfm.data.conditions import CONTROL, SEPARATOR, perturbation_of, targets
from scdfm.data.design import Design, labels_of
from scdfm.data.gene_names import read_genes
from scdfm.data.inspection import advice, columns
from scdfm.data.inspection.columns import Candidate, Guess
from scdfm.data.inspection.labels import Genes, frequencies
from scdfm.data.labels import label_cells
from scdfm.data.naming import MISSING, Naming
from scdfm.data.source import Source, open_source
from scdfm.errors import DataError, ScdfmError

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class Inspection:
    """What a file holds and how to fit it; `command` is the whole `scdfm fit` line, None where none can be proposed.

    `perturbation` is the likeliest column with its control label, `alternatives` the others; `targets` counts
    conditions by their number of targets; `cells_per_condition` is (fewest, median) of perturbed conditions; `drugs` says
    that no target is a gene of the file; `decisions` say how names are read, and why.
    """

    file: str
    n_cells: int
    n_genes: int
    matrices: tuple[kinds.Matrix, ...]
    matrix: kinds.Matrix | None
    perturbation: Guess | None
    alternatives: tuple[Guess, ...] = ()
    covariates: tuple[Guess, ...] = ()
    dose: Guess | None = None
    time: Guess | None = None
    smiles: Guess | None = None
    split_columns: tuple[str, ...] = ()
    n_conditions: int = 0
    targets: dict[int, int] | None = None
    cells_per_condition: tuple[int, float] | None = None
    n_controls: int = 0
    drugs: bool = False
    decisions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    pitfalls: tuple[str, ...] = ()
    command: tuple[str, ...] | None = None

    @property
    def line(self) -> str | None:
        """The command as one line for a shell."""
        return None if self.command is None else shlex.join(self.command)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping of everything, `line` included."""
        return asdict(self) | {"line": self.line}


def inspect(path: str | Path | AnnData) -> Inspection:
    """Look at a screen (`.h5ad`, `.zarr`, or an AnnData) without reading more than a sample of its values.

    Raises DataError where it is no file of cells at all; whatever else is odd stands in `pitfalls`.
    """
    with open_source(path, columns.importance) as source:
        if not source.n_cells or not len(source.genes):
            raise DataError(
                f"{source.name} holds {source.n_cells} cells × {len(source.genes)} genes; expected a screen of cells"
            )
        return _Inspector(source).inspection()


class _Inspector:
    """Steps of an inspection, in their order; what is odd is collected on the way."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.obs = source.obs
        self.decisions: list[str] = []
        self.notes: list[str] = list(source.notes)
        self.pitfalls: list[str] = []
        self.matrices = kinds.matrices(source)
        self.matrix = kinds.chosen(self.matrices)
        self.source = source.at(self.matrix.layer if self.matrix else None)
        self.pitfalls.extend(advice.matrix_pitfalls(self.matrices, self.matrix))
        if self.matrix is None:
            self.pitfalls.append(
                "no matrix holds counts or anything that log1p values can be made of; store the counts as X or as a layer"
            )

    def inspection(self) -> Inspection:
        """Everything that is found."""
        source, matrix = self.source, self.matrix
        spellings = gene_names.spellings(source)
        candidates = columns.candidates(self.obs, spellings, source.counts)
        column = candidates[0].meaning.naming.genes if candidates else None
        density, layer = (matrix.density, matrix.layer) if matrix else (0.0, None)
        self.pitfalls.extend(advice.file_pitfalls(source, density, layer, column))
        common = (str(source.path or source.name), source.n_cells, len(source.genes), tuple(self.matrices), matrix)
        if not candidates:
            obs_columns = ", ".join(map(str, self.obs.columns)) or "none"
            self.pitfalls.append(
                "no column of obs has a label of untreated cells such as control, DMSO or non-targeting "
                f"(columns: {obs_columns}); give --perturbation-key and --control by hand"
            )
            return Inspection(*common, None, notes=tuple(self.notes), pitfalls=tuple(self.pitfalls))
        best, others = candidates[0], candidates[1:]
        labels = labels_of(self.obs, best.column, source.name)
        counts = frequencies(labels, source.counts)
        self.decisions.extend(advice.decisions(best, others, spellings, counts, self.obs))
        alternatives = tuple(other.guess for other in others)
        return Inspection(*common, best.guess, alternatives, **self._design(best, labels, spellings))

    def _design(self, best: Candidate, labels: pd.Series, spellings: Genes) -> dict[str, Any]:
        """Columns beside the perturbation, the conditions they make, and the line."""
        naming = best.meaning.naming
        parts = [part.strip() for part in best.column.split(SEPARATOR)]
        twins = [c for c in map(str, self.obs.columns) if c != best.column and _same(self.obs[c], labels)]
        taken = [best.column, *parts, *twins]
        gone = labels.fillna(MISSING).map({x: naming.excludes(x) for x in labels.fillna(MISSING).unique()})
        if gone.any():
            self.obs, labels = self.obs[~gone.to_numpy(bool)], labels[~gone.to_numpy(bool)]
        obs = self.obs
        untreated = labels.map({label: _is_control(label, naming) for label in labels.unique()}).astype(bool)
        covariates = columns.covariate_guesses(obs, untreated, taken)
        dose, dose_note = columns.number_guess(obs, columns.DOSE_NAMES, untreated, taken)
        time, time_note = columns.number_guess(obs, columns.TIME_NAMES, untreated, taken)
        self.notes.extend(note for note in (dose_note, time_note) if note)
        self._note_groups(untreated, taken, covariates)
        smiles, smiles_note = columns.smiles_guess(obs, labels, untreated)
        self.pitfalls.extend([smiles_note] if smiles_note else [])
        genes, aliases = self._genes(best, spellings)
        self.pitfalls.extend(advice.label_pitfalls(sorted(labels.unique()), naming, genes))
        unit = columns.unit_guess(obs, dose.column, untreated) if dose else None
        fields: dict[str, Any] = {
            "covariates": tuple(covariates), "dose": dose, "time": time, "smiles": smiles,
        }  # fmt: skip
        design = Design(
            tuple(guess.column for guess in covariates),
            dose.column if dose else None,
            time.column if time else None,
            dose_unit_key=unit.column if unit else None,
        )
        names = self._names(best, design)
        if names is not None:
            fields["split_columns"] = tuple(columns.split_columns(obs, names, untreated))
            fields |= self._conditions(names, genes, smiles is not None, aliases)
            if self.matrix is not None and (naming.genes or not pd.Index(genes).duplicated().any()):
                fields["command"] = self._line(best, design, smiles, names, fields["drugs"])
        said = {name: tuple(getattr(self, name)) for name in ("decisions", "notes", "pitfalls")}
        return fields | said

    def _genes(self, best: Candidate, spellings: Genes) -> tuple[list[str], dict[str, str]]:
        """The names of the genes, and their aliases among the targets."""
        var = self.source.var
        try:
            genes = read_genes(self.source, best.meaning.naming.genes, best.meaning.naming.gene_versions)
        except DataError:  # names of the index that repeat, which are among the pitfalls
            return [str(gene) for gene in self.source.genes], {}
        self.decisions.extend(genes.notes)
        if genes.columns is not None:
            var = var.iloc[genes.columns]
        return genes.names.tolist(), advice.aliases(best, spellings, var, genes.names.tolist(), self.obs)

    def _line(
        self, best: Candidate, design: Design, smiles: Guess | None, names: Any, drugs: bool
    ) -> tuple[str, ...] | None:
        """The fit line, or a pitfall that says why there is none."""
        assert self.matrix is not None
        file = str(self.source.path or "DATA.h5ad")
        sizes = self._sizes(names)
        line = advice.fit_line(file, best.guess, best.meaning.naming, design, self.matrix, smiles, sizes, drugs)
        if line is None:
            self.pitfalls.append(advice.nothing_to_hold_out(drugs))
        return line

    def _note_groups(self, untreated: pd.Series, taken: Sequence[str], covariates: list[Guess]) -> None:
        """Batches that controls can be matched by, and groups without controls."""
        obs, used = self.obs, [guess.column for guess in covariates]
        for column in columns.named(obs, (*columns.COVARIATE_NAMES, *columns.BATCH_NAMES), [*taken, *used]):
            if obs[column].nunique() < 2:
                continue
            lacking = columns.uncontrolled(obs[column], untreated)
            by = next((other for other in used if columns.decides(obs[other], obs[column])), None)
            if lacking:
                self.pitfalls.append(
                    f"obs['{column}']: {len(lacking)} of {obs[column].nunique()} values have no control cells (first: "
                    f"'{lacking[0]}'), so it is proposed for nothing; with --control-fallback all it can be a covariate"
                )
            elif by:
                self.notes.append(f"obs['{column}'] is decided by '{by}' and adds nothing to it")
            else:
                self.notes.append(f"obs['{column}'] has controls in every value: --match-controls can take it")

    def _names(self, best: Candidate, design: Design) -> Any:
        """The condition of every cell, or None where the labels cannot be read as they are."""
        try:
            rows = np.arange(len(self.obs))
            return label_cells(
                self.obs, rows, best.column, best.meaning.naming, design, self.source.name, min_cells=1, strict=False
            ).names
        except ScdfmError as error:
            self.pitfalls.append(f"the labels cannot be read as they are: {error}")
            return None

    def _sizes(self, names: Any) -> Counter[str]:
        """The number of cells of each of the `names` of the rows of obs."""
        counts = self.source.counts
        cells = np.ones(len(names), dtype=np.int64) if counts is None else counts.loc[self.obs.index]
        sizes: Counter[str] = Counter()
        for name, n in zip(names.tolist(), cells.tolist(), strict=True):
            sizes[name] += n
        return sizes

    def _conditions(self, names: Any, genes: Sequence[str], smiles: bool, aliases: dict[str, str]) -> dict[str, Any]:
        """Numbers of conditions and cells, and pitfalls of the targets."""
        sizes = self._sizes(names)
        self.pitfalls.extend(advice.size_pitfalls(sizes))
        n_controls = sizes.pop(CONTROL, 0)
        plain = sorted({perturbation_of(name) for name in sizes})
        every = {target for name in plain for target in targets(name)}
        drugs = smiles or not every & set(genes)
        pitfall = gene_names.elsewhere(self.source, every) if drugs and not smiles else None
        self.pitfalls.extend([pitfall] if pitfall else advice.target_pitfalls(plain, genes, drugs, aliases))
        return {
            "n_conditions": len(sizes),
            "targets": dict(sorted(Counter(len(targets(name)) for name in sizes).items())),
            "cells_per_condition": (min(sizes.values()), float(np.median(list(sizes.values())))),
            "n_controls": n_controls,
            "drugs": drugs,
        }


def _is_control(label: str, naming: Naming) -> bool:
    try:
        return not naming.parse(label).perturbations
    except ScdfmError:
        return False


def _same(one: pd.Series, other: pd.Series) -> bool:
    """Whether two columns hold the same texts."""
    return bool((one.astype(str).to_numpy() == other.astype(str).to_numpy()).all())


_SIZES = {1: "singles", 2: "doubles", 3: "triples"}


def text(inspection: Inspection) -> str:
    """What a file holds, what could go wrong, and the line that fits it."""
    return "\n".join(
        [
            *_holds(inspection),
            *_listed("decided", inspection.decisions),
            *_listed("notes", inspection.notes),
            *_listed("what could go wrong", inspection.pitfalls),
            *_line(inspection),
        ]
    )


def _holds(inspection: Inspection) -> Iterator[str]:
    yield f"{inspection.file}: {inspection.n_cells:,} cells × {inspection.n_genes:,} genes"
    for matrix in inspection.matrices:
        used = "  ← used" if matrix == inspection.matrix else ""
        yield _row(matrix.name, f"{matrix.kind} ({matrix.evidence}; {matrix.density:.0%} not zero){used}")
    if inspection.perturbation is not None:
        yield _row("perturbation", f"{_column(inspection.perturbation)}; control '{inspection.perturbation.value}'")
    for other in inspection.alternatives[:5]:
        yield _row("  or", f"{_column(other)}; control '{other.value}'")
    if len(inspection.alternatives) > 5:
        yield _row("", f"and {len(inspection.alternatives) - 5} columns more")
    for covariate in inspection.covariates:
        yield _row("covariate", _column(covariate))
    for name in ("dose", "time", "smiles"):
        guess = getattr(inspection, name)
        if guess is not None:
            yield _row("SMILES" if name == "smiles" else name, _column(guess))
    for column in inspection.split_columns:
        yield _row("split", f"obs['{column}'] names train and test: --split obs:{column}")
    if inspection.cells_per_condition is not None:
        yield _row("conditions", f"{inspection.n_conditions:,} ({_sizes(inspection)}) and control")
        fewest, median = inspection.cells_per_condition
        yield _row(
            "cells", f"{inspection.n_controls:,} control, {fewest:,} to a condition at least, {median:,g} in the median"
        )


def _sizes(inspection: Inspection) -> str:
    return ", ".join(
        f"{n:,} {_SIZES.get(size, f'of {size} targets')}" for size, n in (inspection.targets or {}).items()
    )


def _line(inspection: Inspection) -> list[str]:
    if inspection.line is None:
        return ["", "no fit line can be proposed: see above"]
    return [
        "",
        "fit it in seconds, without training (leave out --preset instant to train a network: fit says what it adds)",
        f"  {inspection.line}",
    ]


def _listed(title: str, items: tuple[str, ...]) -> list[str]:
    return ["", title, *(f"  - {item}" for item in items)] if items else []


def _row(name: str, value: str) -> str:
    return f"  {name:<16}{value}"


def _column(guess: Guess) -> str:
    return f"obs['{guess.column}'] ({guess.reason})"
