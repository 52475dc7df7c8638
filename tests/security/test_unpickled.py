"""Files from anybody: a pickle is refused before it could run, whatever it is disguised as."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import scdfm
from scdfm.errors import RunError, ScdfmError
from scdfm.official.convert import load_plain
from scdfm.training.checkpoint import SafetensorsIO, read_checkpoint


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def saved(content: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def smuggled(proof: Path) -> bytes:
    """A good checkpoint whose pickle was exchanged for a malicious one."""
    good, changed = io.BytesIO(saved({"a": torch.ones(3)})), io.BytesIO()
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(changed, "w") as out:
        for entry in source.infolist():
            content = pickle.dumps(Malicious(proof)) if entry.filename.endswith("data.pkl") else source.read(entry)
            out.writestr(entry, content)
    return changed.getvalue()


DISGUISES: dict[str, Callable[[Path], bytes]] = {
    "a pickle": lambda proof: pickle.dumps(Malicious(proof)),
    "protocol 0": lambda proof: pickle.dumps(Malicious(proof), protocol=0),
    "within a dictionary of tensors": lambda proof: saved({"w": torch.ones(2), "x": [Malicious(proof)]}),
    "as a key": lambda proof: saved({"model_state_dict": {(1, Malicious(proof)): torch.ones(1)}}),
    "smuggled into a good file": smuggled,
    "a numpy object": lambda proof: saved({"x": np.array([Malicious(proof)], dtype=object)}),
    "text that names os.system": lambda proof: f"cos\nsystem\n(S'mkdir {proof}'\ntR.".encode(),
    "a builtin": lambda proof: f'c__builtin__\neval\n(S\'__import__("os").mkdir("{proof}")\'\ntR.'.encode(),
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_nothing_of_a_malicious_checkpoint_runs(disguise: str, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    content = DISGUISES[disguise](proof)
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(RunError) as caught:
        load_plain(tmp_path / "m.pt")
    assert not proof.exists()
    assert "\n" not in str(caught.value)
    # The same bytes do run where they are trusted: the test would notice.
    if disguise in ("a pickle", "protocol 0"):
        pickle.loads(content)
        assert proof.is_dir()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_checkpoint_cut_or_scrambled_anywhere_is_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    whole = saved({"model_state_dict": {"a": torch.arange(12.0).reshape(3, 4)}, "iteration": 3})
    cut = data.draw(st.integers(0, len(whole)))
    start = data.draw(st.integers(0, len(whole)))
    changed = bytearray(whole[:cut])
    noise = data.draw(st.binary(max_size=24))
    changed[start : start + len(noise)] = noise
    (tmp_path / "f.pt").write_bytes(changed)
    with contextlib.suppress(ScdfmError):  # nothing else may escape
        load_plain(tmp_path / "f.pt")


@pytest.mark.parametrize(
    "content", [b"J", b"G", b"\x80\x02M", b"\x8a", b"X\xff\xff\xff\xff", *(bytes([byte]) for byte in range(0, 256, 17))]
)
def test_a_file_of_one_byte_or_cut_within_a_number_is_refused(content: bytes, tmp_path: Path) -> None:
    """Of some of which torch's reader raises struct.error."""
    (tmp_path / "f.pt").write_bytes(content)
    with pytest.raises(RunError, match=r"f\.pt is n"):
        load_plain(tmp_path / "f.pt")


def test_a_storage_of_another_name_is_refused(tmp_path: Path) -> None:
    """Of which torch's reader raises AssertionError."""
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(3.0)}, buffer, _use_new_zipfile_serialization=False)
    whole = buffer.getvalue()
    (named, again) = re.findall(rb"\d{9,}", whole)
    assert named == again
    place = whole.rindex(again)
    (tmp_path / "f.pt").write_bytes(whole[:place] + b"0" * len(again) + whole[place + len(again) :])
    with pytest.raises(RunError, match=r"f\.pt is not a file of torch.save"):
        load_plain(tmp_path / "f.pt")


@given(st.binary(max_size=200))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_no_checkpoint_of_a_fit(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last.safetensors").write_bytes(content)
    with pytest.raises(RunError, match="cannot be read"):
        read_checkpoint(tmp_path / "last.safetensors")


TREES = [
    "3", "null", "[]", "{}", '{"tensor": "9"}', '{"items": 3}', '{"items": [[1]]}', '{"list": [{"tensor": {}}]}',
    '{"items": [[{"list": []}, 1]]}', '{"odd": [1]}', "[" * 50_000, '{"__reduce__": ["os.system", "true"]}',
]  # fmt: skip


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree[:24])
def test_a_checkpoint_with_another_tree_is_refused(tree: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"0": torch.ones(1)}, tmp_path / "c.safetensors", metadata={"tree": tree})
    with pytest.raises(RunError, match="cannot be read"):
        read_checkpoint(tmp_path / "c.safetensors")


def test_the_reader_of_checkpoints_never_reaches_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was unpickled")

    for place in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(place, refuse)
    io_plugin = SafetensorsIO()
    io_plugin.save_checkpoint({"a": torch.ones(2), "n": {"x": (1, None, "t")}}, tmp_path / "c.safetensors")
    loaded = io_plugin.load_checkpoint(tmp_path / "c.safetensors", weights_only=False)
    assert loaded["n"] == {"x": (1, None, "t")}
    (tmp_path / "m.safetensors").write_bytes(pickle.dumps(Malicious(tmp_path / "proof")))
    with pytest.raises(RunError, match="cannot be read"):
        io_plugin.load_checkpoint(tmp_path / "m.safetensors", weights_only=False)
    assert not (tmp_path / "proof").exists()


SMALL = [
    "panel.n_genes=12", "graph.k=3", "model.width=16", "model.gene_heads=2", "model.layers=1", "flow.genes_per_step=8",
    "training.validate_every=2", "training.validation_cells=4", "training.cells_per_condition=4", "sampling.steps=1",
    "training.conditions_per_batch=2", "training.warmup_steps=1", "training.accelerator=cpu", "split.test_fraction=0.5",
    "training.max_steps=4",
]  # fmt: skip


def test_a_whole_resume_through_lightning_unpickles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = scdfm.simulate(n_genes=14, n_targets=3, cells_per_condition=6, n_controls=10, truth_cells=2)
    cells, config = scdfm.read_cells(screen), scdfm.Config().with_settings(SMALL)
    out = tmp_path / "run"
    scdfm.fit(cells, config=config, out=out, progress=False)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"digests": {}, "result": {}}))
    shutil.copy(out / "checkpoints" / "last.safetensors", tmp_path / "kept")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was unpickled")

    for place in ("pickle.load", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(place, refuse)
    run = scdfm.fit(cells, config=config, out=out, resume=True, progress=False)
    assert run.manifest.digests["weights.safetensors"] == manifest["digests"]["weights.safetensors"]
    # and where the checkpoint is a pickle, the same call refuses it
    (out / "manifest.json").write_text(json.dumps(manifest | {"digests": {}, "result": {}}))
    (out / "checkpoints" / "last.safetensors").write_bytes(pickle.dumps(Malicious(tmp_path / "proof")))
    with pytest.raises(RunError, match=r"last\.safetensors cannot be read"):
        scdfm.fit(cells, config=config, out=out, resume=True, progress=False)
    assert not (tmp_path / "proof").exists()
