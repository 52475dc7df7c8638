# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["torch==2.13.0", "transformers==5.24.0", "anndata==0.12.19"]
# ///
"""Geneformer's form: a BERT over genes ranked by expression, the targets moved to the front, and a linear head.

A control cell's ranking goes in, the mean of perturbed cells comes out. From nothing at a size for one core, or with
`weights`: a folder with config.json, model.safetensors, and tokens.json (a token for each gene, by the screen's names).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from contract import CONTROL, Task, fit, size
from transformers import BertConfig, BertModel

BATCH, PAD, LONGEST = 32, 0, 512


class Regressor(torch.nn.Module):
    """Mean of the embeddings of a cell's genes, and a linear head to all genes."""

    def __init__(self, task: Task, n_tokens: int) -> None:
        super().__init__()
        if folder := task.entries.get("weights"):
            self.bert = BertModel.from_pretrained(  # nosec B615
                folder, add_pooling_layer=False, local_files_only=True
            )
        else:
            self.bert = BertModel(
                BertConfig(
                    vocab_size=n_tokens, hidden_size=256, num_hidden_layers=3, num_attention_heads=4, hidden_act="relu",
                    intermediate_size=512, max_position_embeddings=LONGEST, pad_token_id=PAD,
                ),
                add_pooling_layer=False,
            )  # fmt: skip
        self.head = torch.nn.Linear(self.bert.config.hidden_size, len(task.genes))
        self.head.bias.data = torch.from_numpy(task.X[task.labels != CONTROL].mean(axis=0))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [cells × longest], padded → means [cells × genes]."""
        mask = tokens != PAD
        hidden = self.bert(input_ids=tokens, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1) / mask.sum(dim=1).clamp(min=1)[:, None, None]
        return self.head((hidden * weight).sum(dim=1))


class Ranking:
    """Cells as ranked tokens: expression over the gene's median among training cells that have it, largest first."""

    def __init__(self, task: Task) -> None:
        named = {target for name in (*task.train, *task.predict) for target in task.targets[name]}
        names = [*task.genes, *sorted(named - set(task.genes))]
        self.tokens = {name: place for place, name in enumerate(names, 1)}
        if folder := task.entries.get("weights"):
            vocabulary = json.loads(Path(folder, "tokens.json").read_text(encoding="utf-8"))
            self.tokens = {name: vocabulary[name] for name in names if name in vocabulary}
        linear = np.expm1(task.X)
        medians = [np.median(column[column > 0]) if (column > 0).any() else 1.0 for column in linear.T]
        value = linear / np.array(medians)
        self.task = task
        self.ranked = [
            [self.tokens[task.genes[place]] for place in np.argsort(-row, kind="stable")[: (row > 0).sum()]
             if task.genes[place] in self.tokens]
            for row in value
        ]  # fmt: skip

    def batch(self, rows: np.ndarray, names: list[str]) -> torch.Tensor:
        """Rankings of control cells with the targets of conditions in front."""
        cells = []
        for row, name in zip(rows, names, strict=True):
            front = [self.tokens[target] for target in self.task.targets[name] if target in self.tokens]
            cells.append([*front, *(token for token in self.ranked[row] if token not in front)][:LONGEST])
        longest = max(1, *map(len, cells))
        return torch.tensor([cell + [PAD] * (longest - len(cell)) for cell in cells])


def main() -> None:
    """Train until the budget is used, and predict."""
    task = Task(unseen=True)
    torch.manual_seed(task.seed)
    ranking = Ranking(task)
    made = Regressor(task, len(ranking.tokens) + 1)

    def loss() -> torch.Tensor:
        controls, perturbed = task.pairs(BATCH)
        means = made(ranking.batch(controls, list(task.labels[perturbed])))
        return torch.nn.functional.mse_loss(means, torch.from_numpy(task.X[perturbed]))

    later = 1.5e-3 * task.cells * len(task.predict)
    steps = fit(task, made, loss, 1e-4 if "weights" in task.entries else 3e-4, later)
    predicted = {}
    for name in task.predict:
        parts = np.array_split(task.controls(), max(1, task.cells // BATCH))
        with torch.no_grad():
            blocks = [made(ranking.batch(rows, [name] * len(rows))).numpy() for rows in parts]
        predicted[name] = np.concatenate(blocks)
    task.answer(predicted, "a mean for each control cell", steps=steps, parameters=size(made))


if __name__ == "__main__":
    main()
