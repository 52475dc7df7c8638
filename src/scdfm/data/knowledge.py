"""What is known of genes from public files: GO annotations, gene sets and networks, as features of targets.

Each file becomes a matrix of genes × attributes (terms, sets, neighbours). An attribute of few genes counts more, by
log(genes / genes with it); rows have length 1, so that products of rows are cosines. Their leading axes over the genes of
the screen are the features: gene sets number thousands, screens hundreds of targets.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from scdfm.data.gene_names import GeneIds, lines_of
from scdfm.errors import DataError

KINDS: Final = ("go", "gmt", "edges")
AXES: Final = 128
"""Features that a file gives at most."""
LEAST_GENES: Final = 3
MOST_GENES: Final = 0.1
"""Genes that an attribute needs, and the largest share of all that it may have: what all have, or one, tells little."""
PASSED_ON: Final = ("isa", "is_a", "part of", "part_of")
"""Relations by which what is said of a term is said of its parent."""
NO_DATA: Final = "ND"
"""Evidence code of GO for: nobody looked."""

Pairs = list[tuple[str, str, float]]
"""Gene, attribute, weight."""


class Known(NamedTuple):
    """What a file says of genes: `values` [n, ≤ AXES], a row for each of `names`, all columns on one scale; its kind."""

    names: tuple[str, ...]
    values: npt.NDArray[np.float32]
    kind: str


def read_known(spec: str, screen: Collection[str] = ()) -> Known:
    """The features that `go:FILE[,OBO][,NAMES]`, `gmt:FILE[,NAMES]` or `edges:FILE[,NAMES]` stands for.

    go: annotations (GAF, or a table symbol, go_id) and the ontology, by which terms are passed on to their parents. gmt:
    gene sets. edges: a network, two names a line and, where there is a third column, its weight. Files may end in .gz.
    NAMES says what ids stand for which symbol (`scdfm.data.gene_names`). screen: names of the screen's genes and targets,
    which the features then go by. DataError for files that cannot be read, or that know no name of the screen.
    """
    kind, files, ids, ontologies = _opened(spec)
    if kind == "go":
        pairs, synonyms = _annotations(files[0])
        ids = ids.with_pairs(synonyms)
    else:
        pairs = _gene_sets(files[0]) if kind == "gmt" else _neighbours(files[0])
    return _features(pairs, ids, set(screen), f"{kind} {files[0].name}", *ontologies)


def go_terms(files: str, names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The GO terms that each of `names` is annotated with itself, sorted; names without any are left out.

    files: FILE[,NAMES] as of the features `go:FILE[,NAMES]`. DataError for files that cannot be read.
    """
    _, paths, ids, _ = _opened(f"go:{files}")
    pairs, synonyms = _annotations(paths[0])
    ids, terms = ids.with_pairs(synonyms), dict[str, set[str]]()
    for gene, term, _ in pairs:
        terms.setdefault(ids.symbol(gene), set()).add(term)
    return {name: tuple(sorted(terms[ids.symbol(name)])) for name in sorted(names) if ids.symbol(name) in terms}


def _opened(spec: str) -> tuple[str, list[Path], GeneIds, list[dict[str, set[str]]]]:
    """The kind of a spec, its files, and what those after the first say: names of genes, ontologies."""
    kind, _, rest = spec.partition(":")
    files = [Path(part.strip()) for part in rest.split(",") if part.strip()]
    if kind not in KINDS or not files:
        raise DataError(f"features '{spec}': expected go:FILE[,OBO], gmt:FILE or edges:FILE")
    ontologies, ids = [], GeneIds()
    for path in files[1:]:
        if kind == "go" and (parents := _parents(path)):
            ontologies.append(parents)
        else:
            ids = ids.with_table(path)
    if len(ontologies) > 1:
        raise DataError(f"features '{spec}': two ontologies, expected one; leave one out")
    return kind, files, ids, ontologies


def _annotations(path: Path) -> tuple[Pairs, Iterable[tuple[str, str]]]:
    """Genes and their terms, and synonyms of genes with their symbols, of a GAF file or a table (symbol, go_id)."""
    lines = (line for line in lines_of(path) if line and not line.startswith("!"))
    first = next(lines, "").split("\t")
    if {"symbol", "go_id"} <= set(first):
        gene, term = first.index("symbol"), first.index("go_id")
        rows = [line.split("\t") for line in lines]
        return [(row[gene], row[term], 1.0) for row in rows if len(row) > max(gene, term)], []
    pairs, synonyms = list[tuple[str, str, float]](), dict[tuple[str, str], None]()
    for line in ("\t".join(first), *lines):
        row = line.split("\t")
        if len(row) < 15 or not row[4].startswith("GO:"):
            raise DataError(
                f"features {path}: '{line[:60]}' is no line of a GAF file (17 columns, a GO id in the fifth); expected "
                "GAF, or a table with the columns symbol and go_id: give one"
            )
        if "NOT" in row[3].split("|") or row[6] == NO_DATA:
            continue
        pairs.append((row[2], row[4], 1.0))
        synonyms |= dict.fromkeys((name, row[2]) for name in (row[1], *row[10].split("|")) if name)
    return pairs, synonyms


def _parents(path: Path) -> dict[str, set[str]]:
    """Parents of each term in an OBO file or a table (go_id, parent, relation), by relations that pass on; else nothing."""
    lines = lines_of(path)
    first = next(lines, "")
    header = first.split("\t")
    parents: dict[str, set[str]] = {}
    if {"go_id", "parent"} <= set(header):
        child, parent = header.index("go_id"), header.index("parent")
        relation = header.index("relation") if "relation" in header else None
        for row in (line.split("\t") for line in lines if line):
            if relation is None or row[relation] in PASSED_ON:
                parents.setdefault(row[child], set()).add(row[parent])
        return parents
    if not first.startswith("format-version:"):
        return parents
    term = ""
    for line in lines:
        key, _, value = line.partition(": ")
        words = value.split(" ! ")[0].split()
        if line.startswith("["):
            term = ""
        elif key == "id":
            term = value
        elif key == "alt_id":
            parents.setdefault(value, set()).add(term)
        elif term and key == "is_a":
            parents.setdefault(term, set()).add(words[0])
        elif term and key == "relationship" and words[0] in PASSED_ON:
            parents.setdefault(term, set()).add(words[1])
    return parents


def _gene_sets(path: Path) -> Pairs:
    """Genes and their sets of a GMT file: name, description, genes, with tabs between."""
    pairs: Pairs = []
    for line in lines_of(path):
        name, *rest = line.split("\t")
        if line.strip() and len(rest) < 2:
            raise DataError(
                f"features {path}: '{line[:60]}' is no gene set; expected its name, a description and its genes, with tabs "
                "between them (GMT)"
            )
        pairs += [(gene.strip(), name, 1.0) for gene in rest[1:] if gene.strip()]
    return pairs


def _neighbours(path: Path) -> Pairs:
    """Genes and those that they have an edge with, and themselves; weights over the largest."""
    pairs: Pairs = []
    weights: Pairs = []
    for number, line in enumerate(line for line in lines_of(path) if line.strip() and not line.startswith("#")):
        row = line.split("\t") if "\t" in line else line.replace(",", " ").split()
        last = row[-1].strip() if len(row) > 2 else "1"
        weight = float(last) if last.replace(".", "", 1).isdigit() else None
        if number == 0 and len(row) > 2 and weight is None:
            continue  # a header
        if len(row) < 2 or weight is None:
            raise DataError(
                f"features {path}: '{line[:60]}' is no edge; expected two names and, if there is a third column, a weight "
                "from 0 on"
            )
        weights.append((row[0].strip(), row[1].strip(), weight))
    largest = max((weight for *_, weight in weights), default=1.0) or 1.0
    for one, other, weight in weights:
        pairs += [(one, other, weight / largest), (other, one, weight / largest)]
    return pairs + [(name, name, 1.0) for name in {name for *names, _ in weights for name in names}]


def _features(
    pairs: Pairs, ids: GeneIds, screen: set[str], kind: str, parents: Mapping[str, set[str]] | None = None
) -> Known:
    spelled = ids.spelled(screen)
    genes = pd.Index(sorted({symbol for gene, *_ in pairs if (symbol := ids.symbol(gene))}))
    symbols = [symbol for symbol in spelled if symbol in genes]
    if not len(genes) or (screen and not symbols):
        raise DataError(
            f"features {kind}: none of the {len(screen)} names of the screen is among its {len(genes)} genes (first of the "
            f"screen: '{min(screen, default='')}', of the file: '{next(iter(genes), '')}'); give a table of names with it, "
            f"or a file of the same species"
        )
    weighted = _weighted(_matrix(pairs, ids, genes, parents or {}))
    mine = genes.get_indexer(pd.Index(symbols)) if symbols else np.arange(len(genes))
    axes = _leading_axes(weighted[np.sort(mine)]) if weighted.shape[1] else np.zeros((0, 0))
    values = np.asarray(weighted @ axes.T)
    informative = np.flatnonzero(np.abs(values).sum(axis=1) > 0)
    if not len(informative):
        raise DataError(
            f"features {kind}: no term, set or neighbour is shared by {LEAST_GENES} genes; give a larger file"
        )
    names, rows = [], []
    for row in informative:
        symbol = str(genes[int(row)])
        for name in spelled.get(symbol, (symbol,)):
            names.append(name)
            rows.append(row)
    return Known(tuple(names), values[rows].astype(np.float32), kind)


def _matrix(pairs: Pairs, ids: GeneIds, genes: pd.Index, parents: Mapping[str, set[str]]) -> sp.csr_matrix:
    """Genes × attributes, with those that theirs descend from."""
    frame = pd.DataFrame(pairs, columns=["gene", "attribute", "weight"])
    symbols = {gene: ids.symbol(gene) for gene in frame["gene"].unique()}
    rows = genes.get_indexer(pd.Index(frame["gene"].map(symbols)))
    above = [(term, parent) for term, others in parents.items() for parent in sorted(others)]
    attributes = pd.Index(frame["attribute"]).append(pd.Index([term for pair in above for term in pair])).unique()
    shape = (len(genes), len(attributes))
    matrix = sp.csr_matrix((frame["weight"], (rows, attributes.get_indexer(pd.Index(frame["attribute"])))), shape)
    matrix.data = np.minimum(matrix.data, 1.0)  # said twice is said
    if not above:
        return matrix
    child, parent = (attributes.get_indexer(pd.Index(side)) for side in zip(*above, strict=True))
    up = sp.csr_matrix((np.ones(len(child)), (child, parent)), (len(attributes), len(attributes)))
    new = matrix
    while new.nnz:  # what was reached last passes on next
        reached = new @ up
        reached.data[:] = 1.0
        new = reached - reached.multiply(matrix > 0)
        new.eliminate_zeros()
        matrix = matrix + new
    return sp.csr_matrix(matrix)


def _weighted(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Genes × attributes, rare ones weighing more, rows of length 1."""
    having = np.asarray((matrix > 0).sum(axis=0)).ravel()
    kept = (having >= LEAST_GENES) & (having <= max(MOST_GENES * matrix.shape[0], LEAST_GENES))
    weighted = matrix[:, kept] @ sp.diags(np.log(matrix.shape[0] / having[kept]))
    length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    return sp.csr_matrix(sp.diags(1 / np.where(length > 0, length, 1.0)) @ weighted)


def _leading_axes(rows: sp.csr_matrix) -> npt.NDArray[np.float64]:
    """The leading right singular vectors [≤ AXES, attributes], each with its largest entry above 0."""
    n = min(AXES, min(rows.shape) - 1)
    if n < 1 or min(rows.shape) <= 4 * AXES:
        axes = np.linalg.svd(rows.toarray(), full_matrices=False)[2][:AXES]
    else:
        _, sizes, axes = svds(rows, k=n, v0=np.ones(min(rows.shape)))
        axes = axes[np.argsort(-sizes, kind="stable")]
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    return np.asarray(axes * signs[:, None])
