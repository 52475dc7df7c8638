"""Downloads: whole, resumed, checked ever after, and told in one line when they cannot be had."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import scdfm.datasets.remote as downloads
from scdfm.datasets import REMOTES, download, norman
from scdfm.datasets.generated import generated_norman
from scdfm.errors import DataError


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` with ranges; the first `breaks` answers stop half-way."""

    content = b""
    breaks = 0
    ranges: list[str | None]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        body = self.server.content[start:]
        if asked and not body:
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.breaks:
            self.server.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.ranges = []
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"http://127.0.0.1:{running.server_port}/norman.h5ad"
        monkeypatch.setitem(downloads.REMOTES, "norman", downloads.Remote("norman", "norman.h5ad", url, "the page"))
        monkeypatch.setattr(downloads, "SCHEMES", ("http",))
        monkeypatch.setattr(downloads, "RETRIES", 0)
        monkeypatch.setattr(downloads, "CHUNK", 1024)
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("screen") / "screen.h5ad"
    generated_norman().write_h5ad(path)
    return path.read_bytes()


def test_downloaded_once_with_its_hash_recorded(
    server: Server, screen: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = screen
    monkeypatch.setenv("SCDFM_DATA", str(tmp_path))
    table = norman(progress=False)
    assert table.source == tmp_path / "norman.h5ad"
    assert (tmp_path / "norman.h5ad").read_bytes() == screen
    assert (tmp_path / "norman.h5ad.sha256").read_text().split()[0] == hashlib.sha256(screen).hexdigest()
    norman(progress=False)
    assert len(server.ranges) == 1


def test_an_interrupted_download_goes_on_where_it_stopped(server: Server, screen: bytes, tmp_path: Path) -> None:
    server.content, server.breaks = screen, 1
    with pytest.raises(DataError, match=r"norman cannot be downloaded from http://.*put it at .*norman\.h5ad"):
        download("norman", tmp_path, progress=False)
    assert not (tmp_path / "norman.h5ad").exists()
    arrived = (tmp_path / "norman.h5ad.part").stat().st_size
    assert 0 < arrived < len(screen)
    path = download("norman", tmp_path, progress=False)
    assert server.ranges == [None, f"bytes={arrived}-"]
    assert path.read_bytes() == screen
    assert sorted(file.name for file in tmp_path.iterdir()) == ["norman.h5ad", "norman.h5ad.sha256"]


def test_a_part_that_is_no_part_starts_anew(server: Server, screen: bytes, tmp_path: Path) -> None:
    server.content = screen
    (tmp_path / "norman.h5ad.part").write_bytes(screen + b"more")
    with pytest.raises(DataError, match="416"):
        download("norman", tmp_path, progress=False)
    assert download("norman", tmp_path, progress=False).read_bytes() == screen


def test_a_page_in_place_of_the_file_is_refused(server: Server, tmp_path: Path) -> None:
    server.content = b"<html>are you human?</html>"
    with pytest.raises(DataError, match=r"gave no HDF5 file; download it with a browser \(from the page\)"):
        download("norman", tmp_path, progress=False)
    assert not (tmp_path / "norman.h5ad").exists()


def test_a_changed_file_is_refused(tmp_path: Path, screen: bytes) -> None:
    path = tmp_path / "norman.h5ad"
    path.write_bytes(screen)
    download("norman", tmp_path)  # put there by hand: recorded, no network
    path.write_bytes(screen + b"x")
    with pytest.raises(DataError, match=r"is not the recorded .*; remove it to download it again, or remove norman"):
        download("norman", tmp_path)


def test_offline_names_the_url_and_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = downloads.Remote("norman", "norman.h5ad", "https://127.0.0.1:1/norman.h5ad", "the page")
    monkeypatch.setitem(downloads.REMOTES, "norman", closed)
    monkeypatch.setattr(downloads, "RETRIES", 0)
    with pytest.raises(DataError) as caught:
        download("norman", tmp_path / "data", progress=False)
    assert "https://127.0.0.1:1/norman.h5ad" in str(caught.value)
    assert str(tmp_path / "data" / "norman.h5ad") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_https_is_accepted(server: Server, screen: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.content = screen
    monkeypatch.setattr(downloads, "SCHEMES", ("https",))
    with pytest.raises(DataError, match="is not https"):
        download("norman", tmp_path, progress=False)
    assert all(remote.url.startswith("https://") for name, remote in REMOTES.items() if name != "norman")


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data set 'replogle': expected one of norman, combosciplex"):
        download("replogle", tmp_path)


def test_what_is_known_of_genes_is_three_files(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is checked by how it begins, so that a page of apology is no annotation."""
    url = downloads.REMOTES["norman"].url
    server.content = b"format-version: 1.2\n"
    for name in downloads.SETS["go"]:
        remote = downloads.Remote(name, f"{name}.obo", url, "the page", "OBO", b"format-version:")
        monkeypatch.setitem(downloads.REMOTES, name, remote)
    found = downloads.download_set("go", tmp_path, progress=False)
    assert [path.read_bytes() for path in found] == 3 * [server.content]
    assert all(downloads.hash_file(path).is_file() for path in found)
    server.content = b"<html>sorry</html>"
    with pytest.raises(DataError, match=r"gave no OBO file; download it with a browser \(from the page\)"):
        downloads.download_set("go", tmp_path / "other", progress=False)
    with pytest.raises(DataError, match=r"'gone': expected one of norman, .*gene-names, go"):
        downloads.download_set("gone")
