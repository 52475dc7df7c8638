"""Time and memory of `scdfm inspect` on ten million cells.

    python benchmarks/inspect_large.py [CELLS]

Another process writes the file: a child's peak, as the system counts it, begins at what its parent held.

A file of that many rows of obs is written to a temporary folder (some 500 MB): drug, dose, cell line, plate, well and
replicate as categoricals, a column of texts, quality measures of every cell, barcodes as names and as a column, and a
sparse matrix of few counts. Then inspect looks at it in a process of its own, whose peak memory the system tells.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem

GENES = 200
INSPECT = """
import atexit, resource, sys
from scdfm.cli import main
@atexit.register
def told():
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)
main()
"""


def write(path: Path, n: int) -> None:
    """A screen of `n` cells: 380 drugs at three doses in 50 lines, with vehicle in every line."""
    rng = np.random.default_rng(0)
    drugs = np.array(["DMSO", *(f"drug{i}" for i in range(380))])
    drug = np.where(rng.random(n) < 0.05, 0, rng.integers(1, len(drugs), n))
    dose = np.where(drug == 0, 0.0, rng.choice([0.05, 0.5, 5.0], n))
    columns = {
        "drug": pd.Categorical.from_codes(drug, drugs), "dose": dose,
        "cell_line": pd.Categorical.from_codes(rng.integers(0, 50, n), [f"line{i}" for i in range(50)]),
        "plate": pd.Categorical.from_codes(rng.integers(0, 14, n), [f"plate{i}" for i in range(14)]),
        "well": pd.Categorical.from_codes(rng.integers(0, 96, n), [f"well{i}" for i in range(96)]),
        "n_counts": rng.gamma(2, 1000, n), "percent_mito": rng.random(n), "gem_group": rng.integers(0, 8, n),
    }  # fmt: skip
    small = sp.random(min(n, 100_000), GENES, density=0.02, format="csr", random_state=0)
    small.data = np.ceil(3 * small.data).astype(np.float32)
    whole = sp.vstack([small] * -(-n // small.shape[0]), format="csr")[:n]
    barcodes = np.char.add("CELL", np.arange(n).astype(str)).astype(object)
    with h5py.File(path, "w") as file:
        write_elem(file, "/", ad.AnnData(whole, var=pd.DataFrame(index=[f"G{i}" for i in range(GENES)])))
        del file["obs"]
        table = pd.DataFrame(columns, index=barcodes)
        write_elem(file, "obs", table)
        texts = {"assay": np.array(["10x", "Parse"], dtype=object)[rng.integers(0, 2, n)], "barcode": barcodes}
        for name, values in texts.items():
            write_elem(file["obs"], name, values)
        file["obs"].attrs["column-order"] = [*columns, *texts]


def main() -> None:
    """Write the file, inspect it, say what it took."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    if len(sys.argv) > 2:
        write(Path(sys.argv[2]), n)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.h5ad"
        subprocess.run([sys.executable, __file__, str(n), str(path)], check=True)
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", INSPECT, "inspect", str(path)], text=True, capture_output=True, check=True
        )
        seconds = time.monotonic() - began
        cpu, peak = map(float, done.stderr.split()[-2:])
        print(done.stdout)
        print(
            f"{n:,} cells, {path.stat().st_size / 1e9:.2f} GB: {seconds:.1f} s ({cpu:.1f} s of one core), "
            f"{peak / 2**20:.2f} GiB at most"
        )


if __name__ == "__main__":
    main()
