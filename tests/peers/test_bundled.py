"""Bundled methods declare what they need, live in environments of their own, and say in a line why one cannot be made."""

from __future__ import annotations

import json
import sys

import pytest

from scdfm import cli
from scdfm.errors import ConfigError
from scdfm.peers.bundled import PEERS, SCRIPTS, PeerError, install, isolated, peer


def test_every_script_declares_its_dependencies_and_python():
    for one in PEERS.values():
        declared = one.declared
        assert declared["requires-python"] == ">=3.11,<3.12"
        pinned = declared["dependencies"] + declared.get("tool", {}).get("scdfm", {}).get("without-dependencies", [])
        assert any("==" in name for name in pinned)
    assert {path.stem for path in SCRIPTS.glob("*.py")} == {"contract", *(f"{name}_peer" for name in PEERS)}


def test_other_dependencies_are_another_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SCDFM_PEERS", str(tmp_path))
    one = peer("cellflow")
    assert one.environment.parent == tmp_path
    assert one.installed is None
    one.environment.mkdir()
    (one.environment / "scdfm.json").write_text(json.dumps({"mib": 3, "packages": 2, "seconds": 1}))
    assert install(one) == {"mib": 3, "packages": 2, "seconds": 1}
    before = one.environment
    one.declared["dependencies"].append("other")
    assert one.environment != before
    del one.__dict__["declared"]


def test_a_row_says_what_is_not_pretrained():
    assert [PEERS[name].row(False) for name in ("cellflow", "scgpt")] == ["CellFlow", "scGPT not pretrained"]
    assert PEERS["scgpt"].row(True) == "scGPT"


def test_nothing_of_this_python_reaches_a_method(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    assert "PYTHONPATH" not in isolated()
    assert isolated()["HF_HUB_OFFLINE"] == "1"


def test_why_an_environment_cannot_be_made(monkeypatch, tmp_path):
    monkeypatch.setenv("SCDFM_PEERS", str(tmp_path))
    fake = tmp_path / "uv"
    fake.write_text("#!/bin/sh\necho no such package >&2; exit 1")
    fake.chmod(0o755)
    monkeypatch.setitem(sys.modules, "uv", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PeerError, match=r"peer 'state' cannot be installed \(.*\); see that its packages"):
        install(peer("state"))
    assert peer("state").installed is None
    fake.unlink()
    with pytest.raises(PeerError, match=r"pip install 'scdfm\[peers\]'"):
        install(peer("state"))


def test_command_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SCDFM_PEERS", str(tmp_path))

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["scdfm", "peers", *words])
        cli.main()

    call("list", "cpa", "gears")
    assert capsys.readouterr().out == "cpa: not installed\ngears: not installed\n"
    for words, message in (
        (["remove"], "peers remove: expected install, check or list"),
        (["install"], "peers install: name one or more of cellflow, "),
        (["check", "celflow"], "peer 'celflow': expected one of cellflow, .*did you mean 'cellflow'"),
    ):
        with pytest.raises(SystemExit) as stop:
            call(*words)
        assert stop.value.code == 2
        assert capsys.readouterr().err.startswith(f"error: {message.split('.*')[0]}")
    with pytest.raises(ConfigError, match="did you mean 'cellflow'"):
        peer("celflow")
