# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["torch==2.13.0", "scgpt==0.2.4", "ipython", "pyarrow<21"]
# ///
"""scGPT's perturbation model: a control cell and a flag at each target's gene go in, the perturbed cell comes out.

From nothing at a size for one core, or with `weights`: a folder with args.json, vocab.json and best_model.pt.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contract import Task, fit, size

# Its last build is for an old torch; scGPT needs the name of one class.
_vocabulary = types.ModuleType("torchtext.vocab")
_vocabulary.Vocab = type("Vocab", (), {})
sys.modules |= {"torchtext": types.ModuleType("torchtext"), "torchtext.vocab": _vocabulary}

from scgpt.loss import masked_mse_loss  # noqa: E402
from scgpt.model import TransformerGenerator  # noqa: E402

BATCH, PAD = 16, "<pad>"
SMALL = {"embsize": 64, "nheads": 4, "d_hid": 64, "nlayers": 2, "dropout": 0.0}


def model(task: Task, tokens: list[str]) -> tuple[TransformerGenerator, np.ndarray]:
    """The generator, and the token of each gene."""
    sizes, words, state = SMALL, {PAD: 0} | {token: place for place, token in enumerate(tokens, 1)}, None
    if folder := task.entries.get("weights"):
        sizes = json.loads(Path(folder, "args.json").read_text()) | {"dropout": 0.0}
        words = json.loads(Path(folder, "vocab.json").read_text())
        words |= {token: len(words) + place for place, token in enumerate(t for t in tokens if t not in words)}
        state = torch.load(Path(folder, "best_model.pt"), map_location="cpu", weights_only=True)
    made = TransformerGenerator(
        len(words), sizes["embsize"], sizes["nheads"], sizes["d_hid"], sizes["nlayers"], nlayers_cls=1, n_cls=1,
        vocab=words, dropout=sizes["dropout"], pad_token=PAD, pert_pad_id=2, use_fast_transformer=False,
    )  # fmt: skip
    if state is not None:
        load(made, state)
    return made, np.array([words[token] for token in tokens])


def load(made: TransformerGenerator, state: dict[str, torch.Tensor]) -> None:
    """Take encoders and transformer of a checkpoint; genes that it does not know keep their random embedding."""
    own, taken = made.state_dict(), 0
    for name, value in state.items():
        name = name.removeprefix("module.").replace("self_attn.Wqkv.", "self_attn.in_proj_")
        if name not in own or not name.startswith(("encoder", "value_encoder", "transformer_encoder")):
            continue
        if name == "encoder.embedding.weight":
            own[name][: len(value)] = value
        elif own[name].shape == value.shape:
            own[name] = value
        else:
            continue
        taken += name.startswith("transformer_encoder")
    if not taken:
        sys.exit("no layer of the transformer of the weights fits; expected those of scGPT")
    made.load_state_dict(own)


def main() -> None:
    """Train until the budget is used, and predict."""
    task = Task(unseen=True)
    torch.manual_seed(task.seed)
    named = {target for name in (*task.train, *task.predict) for target in task.targets[name]}
    tokens = [*task.genes, *sorted(named - set(task.genes))]
    place, n = {token: i for i, token in enumerate(tokens)}, len(task.genes)
    made, ids = model(task, tokens)
    X = np.pad(task.X, ((0, 0), (0, len(tokens) - n)))  # targets that were not measured have a token of value 0

    def forward(rows: np.ndarray, names: list[str]) -> Any:
        flags = torch.zeros(len(rows), len(tokens), dtype=torch.long)
        for row, name in enumerate(names):
            flags[row, [place[target] for target in task.targets[name]]] = 1
        source = torch.from_numpy(np.tile(ids, (len(rows), 1)))
        padding = torch.zeros(len(rows), len(tokens), dtype=torch.bool)
        return made(source, torch.from_numpy(X[rows]), flags, padding)["mlm_output"][:, :n]

    def loss() -> torch.Tensor:
        controls, perturbed = task.pairs(BATCH)
        target = torch.from_numpy(task.X[perturbed])
        prediction = forward(controls, list(task.labels[perturbed]))
        return masked_mse_loss(prediction, target, torch.ones_like(target, dtype=torch.bool))

    each = 1.6e-3 * task.cells * (len(tokens) / 300) ** 2 * SMALL["nlayers"]
    rate = 1e-4 if "weights" in task.entries else 1e-3
    steps = fit(task, made, loss, rate, later=each * len(task.predict))
    predicted = {}
    for name in task.predict:
        parts = np.array_split(task.controls(), max(1, task.cells // BATCH))
        with torch.no_grad():
            predicted[name] = np.concatenate([forward(rows, [name] * len(rows)).numpy() for rows in parts])
    task.answer(predicted, "a mean for each control cell", steps=steps, parameters=size(made))


if __name__ == "__main__":
    main()
