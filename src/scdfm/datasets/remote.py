"""Fetching the public files once, resumable, with the hash of the first download checked ever after."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scdfm.errors import DataError
from scdfm.files import write_text

FOLDER_VARIABLE: Final = "SCDFM_DATA"
"""Environment variable that names the folder of downloads."""
SCHEMES: Final = ("https",)
RETRIES: Final = 2
_TIMEOUT: Final = 60  # seconds without a byte
CHUNK: Final = 1 << 20  # bytes; what an interruption may lose


@dataclass(frozen=True)
class Remote:
    """A public file: where it is, the page that describes it, its name on disk, and what it is: a kind that begins so."""

    name: str
    file: str
    url: str
    page: str
    kind: str = "HDF5"
    begins: bytes = b"\x89HDF"


REMOTES: Final = {
    one.name: one
    for one in (
        Remote(
            "norman", "norman.h5ad", "https://ndownloader.figshare.com/files/43390776",
            "https://doi.org/10.6084/m9.figshare.24688110",
        ),
        Remote(
            "combosciplex", "combosciplex.h5ad", "https://ndownloader.figshare.com/files/44229635",
            "https://doi.org/10.6084/m9.figshare.25062230",
        ),
        Remote(
            "go-annotations", "goa_human_2024-06-17.gaf.gz",
            "https://release.geneontology.org/2024-06-17/annotations/goa_human.gaf.gz",
            "https://geneontology.org/docs/download-go-annotations/", "gzip", b"\x1f\x8b",
        ),
        Remote(
            "go-ontology", "go-basic_2024-06-17.obo",
            "https://release.geneontology.org/2024-06-17/ontology/go-basic.obo",
            "https://geneontology.org/docs/download-ontology/", "OBO", b"format-version:",
        ),
        Remote(
            "gene-names", "hgnc_complete_set.txt",
            "https://storage.googleapis.com/public-download-files/hgnc/tsv/tsv/hgnc_complete_set.txt",
            "https://www.genenames.org/download/", "HGNC", b"hgnc_id",
        ),
    )
}  # fmt: skip
SETS: Final = {"go": ("go-annotations", "go-ontology", "gene-names")}
"""Files that go together: the annotations and the ontology of one release of GO, and what genes are called."""


def default_folder() -> Path:
    """Where downloads go unless asked otherwise: $SCDFM_DATA, else the user's cache folder."""
    import pooch

    return Path(os.environ.get(FOLDER_VARIABLE) or pooch.os_cache("scdfm"))


def download(name: str, folder: str | Path | None = None, progress: bool = True) -> Path:
    """The file of data set `name` in `folder`, downloaded if it is not there.

    An interrupted download goes on where it stopped. Its sha256 is recorded beside the file (`.sha256`) the first
    time and checked every time after. Raises DataError where the name is unknown, the file cannot be had (with
    the URL and where to put it by hand) or is not the one recorded.
    """
    if name not in REMOTES:
        raise DataError(f"data set '{name}': expected one of {', '.join(REMOTES)}")
    remote = REMOTES[name]
    path = (Path(folder) if folder is not None else default_folder()) / remote.file
    if not path.is_file():
        _fetch(remote, path, progress)
    _check_hash(path)
    return path


def download_set(name: str, folder: str | Path | None = None, progress: bool = True) -> tuple[Path, ...]:
    """The files that `name` stands for (SETS), or the one file of that name; raises what `download` does."""
    if name not in {*SETS, *REMOTES}:
        raise DataError(f"data set '{name}': expected one of {', '.join((*REMOTES, *SETS))}")
    return tuple(download(one, folder, progress) for one in SETS.get(name, (name,)))


def hash_file(path: Path) -> Path:
    """The file beside `path` that holds its recorded sha256."""
    return path.with_name(path.name + ".sha256")


def _fetch(remote: Remote, path: Path, progress: bool) -> None:
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")  # pooch tells of a missing hash, which is recorded here
    fetcher = pooch.create(
        path.parent, base_url="", registry={path.name: None}, urls={path.name: remote.url}, retry_if_failed=RETRIES
    )
    part = path.with_name(path.name + ".part")
    try:
        fetcher.fetch(path.name, downloader=ResumingDownload(part, progress))
    except (requests.RequestException, OSError, ValueError) as error:
        raise DataError(
            f"{remote.name} cannot be downloaded from {remote.url} ({type(error).__name__}: {str(error)[:200]}); "
            f"try again, or download it on another machine (it is described at {remote.page}) and put it at {path}"
        ) from error
    with path.open("rb") as file:
        begins = file.read(len(remote.begins))
    if begins != remote.begins:
        path.unlink()
        raise DataError(
            f"{remote.name}: {remote.url} gave no {remote.kind} file; download it with a browser (from {remote.page}) and "
            f"put it at {path}"
        )


class ResumingDownload:
    """A downloader for pooch that keeps what has arrived in `part` and asks only for the rest."""

    def __init__(self, part: Path, progress: bool) -> None:
        self.part, self.progress = part, progress

    def __call__(self, url: str, output_file: str, pooch: Any, check_only: bool = False) -> None:
        """Bring `url` to `output_file`; raises requests' errors, and OSError where bytes are missing."""
        import requests

        have = self.part.stat().st_size if self.part.is_file() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, stream=True, headers=headers, timeout=_TIMEOUT) as response:
            for hop in (*response.history, response):
                if not hop.url.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
                    raise OSError(f"{hop.url} is not {SCHEMES[0]}")
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                self.part.unlink()  # more than there is: not a part of this file
            response.raise_for_status()
            if response.status_code != requests.codes.partial_content:
                have = 0
            total = have + int(response.headers.get("Content-Length", 0))
            self._write(response, have, total)
        if total and self.part.stat().st_size != total:
            raise OSError(f"{self.part.stat().st_size} of {total} bytes arrived")
        self.part.replace(output_file)

    def _write(self, response: Any, have: int, total: int) -> None:
        from tqdm.auto import tqdm

        with (
            self.part.open("ab" if have else "wb") as file,
            tqdm(
                total=total or None, initial=have, unit="B", unit_scale=True, desc="download",
                disable=not self.progress,
            ) as bar,
        ):  # fmt: skip
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))


def _check_hash(path: Path) -> None:
    """Record the sha256 of a file seen for the first time; refuse one that differs from its record."""
    import pooch

    digest, record = pooch.file_hash(str(path), alg="sha256"), hash_file(path)
    if not record.is_file():
        write_text(record, f"{digest}  {path.name}\n")
        return
    recorded = (record.read_text(encoding="utf-8").split() or [""])[0]
    if digest != recorded:
        raise DataError(
            f"{path}: sha256 {digest[:12]}… is not the recorded {recorded[:12]}…, so the file was changed or damaged; "
            f"remove it to download it again, or remove {record.name} to accept it"
        )
