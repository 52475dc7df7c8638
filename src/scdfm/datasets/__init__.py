"""The two public data sets of the published experiments, and the published results.

`norman(path)` and `combosciplex(path)` read any known copy into a CellTable with canonical conditions; without a
path they download the published copy once.
"""

from scdfm.datasets.combosciplex import combosciplex, combosciplex_split
from scdfm.datasets.norman import norman
from scdfm.datasets.published import published
from scdfm.datasets.remote import REMOTES, SETS, download, download_set

__all__ = [
    "REMOTES",
    "SETS",
    "combosciplex",
    "combosciplex_split",
    "download",
    "download_set",
    "norman",
    "published",
]
