"""The two public data sets of the published experiments, and the published results.

`norman(path)` and `combosciplex(path)` read any known copy into a CellTable with canonical conditions; without a
path they download the published copy once.
"""

from scdfm.datasets.remote import REMOTES, SETS, download, download_set
from scdfm.datasets.screens import combosciplex, combosciplex_split, norman, published

__all__ = [
    "REMOTES", "SETS", "combosciplex", "combosciplex_split", "download", "download_set", "norman", "published",
]  # fmt: skip
