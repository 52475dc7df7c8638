"""Small files in the layouts of public screens, with what is known of each of their cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem

SYMBOLS = ("AHR", "FEV", "HLA-A", "KLF1", "MAP2K6", "NT5E", "STAT1", "TP53", *(f"GENE{i:02d}" for i in range(32)))
ENSEMBL = tuple(f"ENSG{place:011d}" for place in range(len(SYMBOLS)))
TARGETS = SYMBOLS[:8]
Members = tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """A file as its source lays it out: `conditions` has scdfm's name for each cell, None where it is to be left out.

    `counts` [N, A] are those of `genes` alone; `log1p` says that the file holds them as log1p of counts per 10,000.
    """

    adata: ad.AnnData
    conditions: tuple[str | None, ...]
    counts: np.ndarray
    genes: tuple[str, ...]
    words: tuple[str, ...]
    """Options that the fit line must hold."""
    log1p: bool = False
    beside: dict[str, ad.AnnData] = field(default_factory=dict)
    """Further modalities by name, those of a MuData file."""

    def write(self, path: Path) -> None:
        """Write the file: an `.h5ad`, or a `.h5mu` where there are further modalities."""
        if not self.beside:
            self.adata.write_h5ad(path)
            return
        with h5py.File(path, "w") as file:
            file.attrs.update({"encoding-type": "MuData", "encoding-version": "0.1.0"})
            for name, part in {"rna": self.adata, **self.beside}.items():
                write_elem(file, f"mod/{name}", part)
            write_elem(file, "obs", pd.DataFrame(index=self.adata.obs.index))
            write_elem(file, "var", pd.DataFrame(index=self.adata.var.index))

    @property
    def values(self) -> np.ndarray:
        """log1p of counts per 10,000 [N, A], in float64."""
        totals = self.counts.sum(1, keepdims=True)
        return np.log1p(self.counts * (1e4 / np.where(totals > 0, totals, 1)))

    def mean(self, condition: str) -> np.ndarray:
        """Mean [A] of a condition's cells."""
        return self.values[[name == condition for name in self.conditions]].mean(0)


def counted(members: Sequence[Members]) -> np.ndarray:
    """Poisson counts [N, A] of cells, each target with an effect of its own."""
    rng = np.random.default_rng(0)
    base = np.log(rng.gamma(0.7, 6.0, len(SYMBOLS)) + 0.5)
    effect: dict[str, np.ndarray] = {}
    for name in sorted({target for names in members for target in names}):
        effect[name] = np.where(rng.random(len(SYMBOLS)) < 0.2, rng.normal(0, 1.2, len(SYMBOLS)), 0.0)
    means = np.array([base + sum((effect[name] for name in names), np.zeros(len(base))) for names in members])
    depth = rng.lognormal(0, 0.25, (len(members), 1))
    return rng.poisson(np.exp(means) * depth).astype(np.float32)


def layout(
    rows: Sequence[tuple[Members, str | None, dict[str, object]]],
    words: Sequence[str],
    var: pd.DataFrame | None = None,
    genes: Sequence[str] = SYMBOLS,
    log1p: bool = False,
    categorical: bool = True,
) -> Layout:
    """The layout of rows (targets, scdfm's name, columns of obs)."""
    counts = counted([members for members, _, _ in rows])
    obs = pd.DataFrame([columns for _, _, columns in rows], index=[f"cell{i}" for i in range(len(rows))])
    if categorical:
        texts = obs.select_dtypes(exclude="number").columns
        obs[texts] = obs[texts].astype("category")
    var = pd.DataFrame(index=list(SYMBOLS)) if var is None else var
    made = Layout(ad.AnnData(sp.csr_matrix(counts), obs=obs, var=var), tuple(name for _, name, _ in rows), counts,
                  tuple(genes), tuple(words), log1p)  # fmt: skip
    if log1p:
        made.adata.X = sp.csr_matrix(made.values.astype(np.float32))
    return made


def by_id(index: Sequence[str] = ENSEMBL, **columns: object) -> pd.DataFrame:
    """var of Ensembl ids, with further columns."""
    return pd.DataFrame(columns, index=list(index))


def replogle() -> Layout:
    """Replogle 2022, raw single cells: Ensembl ids, symbols in var['gene_name'], guides and ids beside obs['gene']."""
    rows: list[tuple[Members, str | None, dict[str, object]]] = []
    for gene, n in (("non-targeting", 60), *((target, 14) for target in TARGETS)):
        own = () if gene == "non-targeting" else (gene,)
        gene_id = ENSEMBL[SYMBOLS.index(gene)] if own else "non-targeting"
        transcript = "P1P2" if own else "non-targeting"
        for cell in range(n):
            rows.append((own, gene if own else "control", {
                "gem_group": cell % 2, "gene": gene, "gene_id": gene_id, "transcript": transcript,
                "gene_transcript": f"{cell % 3}_{gene}_{transcript}_{gene_id}",
                "sgID_AB": f"{gene}_+_{cell % 3}.23-P1P2|{gene}_-_{cell % 3}.23-P1P2", "mitopercent": 0.1,
            }))  # fmt: skip
    var = by_id(gene_name=SYMBOLS, chr="chr1", start=1, strand="+", mean=1.0)
    return layout(rows, ("--perturbation-key gene", "--control non-targeting", "--gene-column gene_name"), var)


def gears_norman() -> Layout:
    """Norman 2019 as GEARS ships it: `A+ctrl`, log1p values, condition_name with cell type and dose, Ensembl ids."""
    rows: list[tuple[Members, str | None, dict[str, object]]] = []
    pairs = [(TARGETS[i], TARGETS[i + 1]) for i in range(6)]
    for members, n in (((), 60), *(((t,), 12) for t in TARGETS), *((pair, 12) for pair in pairs)):
        label = "+".join([*members, "ctrl"][:2]) if members else "ctrl"
        dose = "1+1" if members else "1"
        rows += [
            (members, "+".join(sorted(members)) or "control", {
                "condition": label, "cell_type": "A549", "dose_val": dose, "control": int(not members),
                "condition_name": f"A549_{label}_{dose}",
            }) for _ in range(n)
        ]  # fmt: skip
    words = ("--perturbation-key condition", "--gene-column gene_name", "--split additive")
    return layout(rows, words, by_id(gene_name=SYMBOLS), log1p=True)


def scperturb_norman() -> Layout:
    """Norman 2019 as scPerturb ships it: pairs joined by `_`, guides by `__`, many columns of one value."""
    rows: list[tuple[Members, str | None, dict[str, object]]] = []
    pairs = [(TARGETS[i], TARGETS[i + 1]) for i in range(6)]
    for members, n in (((), 60), *(((t,), 12) for t in TARGETS), *((pair, 12) for pair in pairs)):
        guide = "_".join([*members, "NegCtrl0", "NegCtrl0"][:2])
        rows += [
            (members, "+".join(sorted(members)) or "control", {
                "guide_id": f"{guide}__{guide}", "gemgroup": cell % 2, "tissue_type": "cell_line", "cell_line": "K562",
                "perturbation_type": "CRISPR", "celltype": "lymphoblasts", "organism": "human",
                "perturbation": "_".join(members) or "control", "nperts": float(len(members)),
            }) for cell in range(n)
        ]  # fmt: skip
    return layout(rows, ("--separator _", "--split additive"), by_id(SYMBOLS, ensembl_id=ENSEMBL, ncounts=1.0))


def census() -> Layout:
    """CELLxGENE Census: numbers for var_names, symbols in var['feature_name'], labels of the depositor."""
    rows: list[tuple[Members, str | None, dict[str, object]]] = []
    for target, n in (("non-targeting control", 60), ("unassigned", 20), *((target, 14) for target in TARGETS)):
        name = {"non-targeting control": "control", "unassigned": None}.get(target, target)
        rows += [
            ((target,) if target in TARGETS else (), name, {
                "soma_joinid": cell, "dataset_id": "d1", "assay": "10x 3' v3", "cell_type": "T cell", "tissue": "blood",
                "is_primary_data": True, "perturbed_gene": target,
            }) for cell in range(n)
        ]  # fmt: skip
    index = [str(place) for place in range(len(SYMBOLS))]
    var = by_id(index, feature_id=ENSEMBL, feature_name=SYMBOLS, feature_type="protein_coding", feature_length=1000)
    words = (
        "--perturbation-key perturbed_gene", "--control 'non-targeting control'", "--exclude unassigned",
        "--gene-column feature_name",
    )  # fmt: skip
    return layout(rows, words, var)


def vcc_2025() -> Layout:
    """Virtual Cell Challenge 2025: obs['target_gene'], guide_id of both guides, batch."""
    rows: list[tuple[Members, str | None, dict[str, object]]] = []
    for target, n in (("non-targeting", 60), *((target, 14) for target in TARGETS)):
        for cell in range(n):
            guides = [f"{target}_{cell % 5:05d}", f"{target}_{cell % 7:05d}"]
            own = target if target in TARGETS else None
            guide = f"{target}_P1P2_A|{target}_P1P2_B" if own else "|".join(guides)
            rows.append(((own,) if own else (), own or "control", {
                "target_gene": target, "guide_id": guide, "batch": f"Flex_{cell % 2}",
            }))  # fmt: skip
    words = ("--perturbation-key target_gene", "--control non-targeting", "--split holdout")
    return layout(rows, words, by_id(SYMBOLS, gene_id=ENSEMBL))


def vcc_2026() -> Layout:
    """Virtual Cell Challenge 2026: obs['target'] and nothing else, raw counts."""
    rows: list[tuple[Members, str | None, dict[str, object]]] = [
        ((target,) if target in TARGETS else (), target if target in TARGETS else "control", {"target": target})
        for target, n in (("non-targeting", 60), *((target, 14) for target in TARGETS))
        for _ in range(n)
    ]
    return layout(rows, ("--perturbation-key target", "--control non-targeting"), categorical=False)


def parse_pbmc() -> Layout:
    """Parse Biosciences' 10 million PBMCs: obs['cytokine'] says more than obs['treatment']; donors and cell types."""
    rows: list[tuple[Members, str | None, dict[str, object]]] = []
    for cytokine, n in (("PBS", 20), ("IFN-gamma", 8), ("IL-4", 8), ("4-1BBL", 8), ("TNF-alpha", 8)):
        for donor in ("Donor1", "Donor2"):
            for kind in ("CD4 Naive", "B Naive"):
                own = cytokine != "PBS"
                name = f"{cytokine}|cell_type={kind}|donor={donor}" if own else "control"
                rows += [((cytokine,) if own else (), name, {
                    "sample": f"{donor}_{cytokine}", "donor": donor, "cytokine": cytokine,
                    "treatment": "cytokine" if own else "PBS", "cell_type": kind, "bc1_well": f"A{cell % 3}",
                }) for cell in range(n)]  # fmt: skip
    return layout(rows, ("--perturbation-key cytokine", "--control PBS", "--covariates cell_type,donor"))


def tahoe() -> Layout:
    """Tahoe-100M: DMSO_TF, drug and concentration in one text, cell lines, brackets and commas in names."""
    rows: list[tuple[Members, str | None, dict[str, object]]] = []
    drugs = ("Trametinib (DMSO_TF solvate)", "Bleomycin (sulfate)", "(+)-JQ1", "Fluorouracil (5-Fluoracil, 5-FU)")
    for line, cell_name in (("CVCL_0023", "A549"), ("CVCL_0292", "HCT15")):
        for drug, dose, n in (("DMSO_TF", 0.0, 30), *((d, u, 6) for d in drugs for u in (0.05, 0.5, 5.0))):
            own = drug != "DMSO_TF"
            rows += [((drug,) if own else (), f"{drug}@{dose:g}|cell_line={line}" if own else "control", {
                "sample": f"smp_{cell}", "drugname_drugconc": f"[('{drug}', {dose}, 'uM')]", "drug": drug,
                "cell_line": line, "cell_name": cell_name, "sublibrary": f"lib_{cell % 2}", "phase": "G1",
                "pass_filter": "full",
            }) for cell in range(n)]  # fmt: skip
    words = ("--perturbation-key drugname_drugconc", "--control DMSO_TF", "--covariates cell_line")
    return layout(rows, words)


def sciplex() -> Layout:
    """sci-Plex 3: product_name with Vehicle, doses in nM, cell types, versioned Ensembl ids and gene_short_name."""
    rows: list[tuple[Members, str | None, dict[str, object]]] = []
    drugs = ("Belinostat (PXD101)", "Fluorouracil (5-Fluoracil, 5-FU)", "(+)-JQ1", "Tranylcypromine (2-PCPA) HCl")
    for kind in ("A549", "K562"):
        for drug, dose, n in (("Vehicle", 0, 30), *((d, u, 6) for d in drugs for u in (10, 100, 1000))):
            own = drug != "Vehicle"
            rows += [((drug,) if own else (), f"{drug}@{dose}|cell_type={kind}" if own else "control", {
                "cell_type": kind, "dose": float(dose), "product_name": drug, "culture_plate": f"plate{cell % 2}",
                "target": "HDAC" if own else "Vehicle", "replicate": f"rep{cell % 2}", "vehicle": not own,
            }) for cell in range(n)]  # fmt: skip
    index = [f"{gene}.{place}" for place, gene in enumerate(ENSEMBL)]
    var = by_id(index, gene_short_name=SYMBOLS)
    words = ("--perturbation-key product_name", "--control Vehicle", "--dose-key dose", "--covariates cell_type")
    return layout(rows, words, var, index)


def frangieh() -> Layout:
    """Frangieh 2021 as scPerturb ships it: cultures in perturbation_2, cells without a gene."""
    rows: list[tuple[Members, str | None, dict[str, object]]] = []
    for culture in ("Control", "IFNγ", "Co-culture"):
        for target, n in (("control", 24), ("nan", 6), *((target, 8) for target in TARGETS[:5])):
            own = target in TARGETS
            name = None if target == "nan" else f"{target}|perturbation_2={culture}" if own else "control"
            rows += [((target, culture) if own else (culture,), name, {
                "library_preparation_protocol": "Perturb-CITE-seq", "tissue_type": "cell_line", "perturbation_2": culture,
                "perturbation": target, "MOI": 1.0, "sgRNA": {"control": f"NO_SITE_{cell}", "nan": "nan"}.get(
                    target, f"{target}_{cell % 3}"), "perturbation_type": "CRISPR-cas9",
            }) for cell in range(n)]  # fmt: skip
    return layout(rows, ("--covariates perturbation_2", "--exclude nan"))


def papalexi() -> Layout:
    """Papalexi 2021 as pertpy ships it: MuData, obs['gene_target'] beside Perturbed/NT and guides such as STAT1g2."""
    rows: list[tuple[Members, str | None, dict[str, object]]] = []
    for target, n in (("NT", 60), *((target, 14) for target in TARGETS)):
        for cell in range(n):
            own, guide = target in TARGETS, f"{target}g{cell % 3 + 1}"
            rows.append(((target,) if own else (), target if own else "control", {
                "orig.ident": "Lane1", "MULTI_ID": f"rep{cell % 2}-tx", "guide_ID": guide, "con": "tx",
                "NT": guide if own else "NT",
                "perturbation": "Perturbed" if own else "NT", "replicate": f"rep{cell % 2}", "gene_target": target,
                "S.Score": 0.1, "Phase": "G1",
            }))  # fmt: skip
    made = layout(rows, ("--perturbation-key gene_target", "--control NT"), by_id(SYMBOLS))
    adt = ad.AnnData(np.ones((len(rows), 4), dtype=np.float32), obs=pd.DataFrame(index=made.adata.obs.index),
                     var=pd.DataFrame(index=["CD86", "PDL1", "PDL2", "CD366"]))  # fmt: skip
    return replace(made, beside={"adt": adt})


LAYOUTS: dict[str, Callable[[], Layout]] = {
    made.__name__: made
    for made in (
        replogle, gears_norman, scperturb_norman, census, vcc_2025, vcc_2026, parse_pbmc, tahoe, sciplex, frangieh,
        papalexi,
    )
}  # fmt: skip
