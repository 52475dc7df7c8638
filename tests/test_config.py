"""Every option is validated; every refusal names the key, what was found and what is known."""

from __future__ import annotations

import pytest

from scdfm.config import Config
from scdfm.errors import ConfigError
from scdfm.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_survive_json(name):
    config = Config.preset(name)
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_paper_preset_carries_the_published_figures():
    paper = Config.preset("paper")
    assert (paper.model.width, paper.model.heads, paper.model.layers, paper.model.dropout) == (512, 8, 4, 0.1)
    assert (paper.panel.n_genes, paper.flow.genes_per_step, paper.graph.k, paper.mmd.weight) == (5000, 1000, 30, 0.5)
    options = paper.training
    assert (options.optimizer, options.learning_rate, options.min_learning_rate) == ("adam", 5e-5, 1e-6)
    assert (options.max_steps, options.conditions_per_batch, options.cells_per_condition) == (100_000, 1, 96)
    assert (paper.sampling.solver, paper.sampling.steps, paper.sampling.genes) == ("rk4", 19, "joint")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("trainin.max_steps=1", "unknown key 'trainin'; known here: seed, panel"),
        ("training.max_step=1", "unknown key 'training.max_step'; known here: max_steps"),
        ("training.max_steps=-1", r"training.max_steps: .* greater than or equal to 0 \(found -1\)"),
        ("model.heads=many", r"model.heads: .* integer.*\(found 'many'\)"),
        ("model.width=30", "width 30 is not a multiple of gene_heads 8"),
        ("model.latents=8", "latents 8 has no effect on backbone 'differential_perceiver'"),
        ("model.backbone=mamba", "model.backbone: .*'differential_perceiver'"),
        ("training.min_learning_rate=1", "min_learning_rate 1.0 exceeds learning_rate"),
        ("flow.pairing_cells=5", "flow.pairing_cells 5 is below training.cells_per_condition 6"),
        ("flow.pairing_cells=1", "flow.pairing_cells"),
        ("training.optimizer=adam", "weight_decay has no effect on optimizer 'adam'"),
        ("split.kind=file", "split.path goes with split.kind = 'file'"),
        ("split.column=fold", "split.column goes with split.kind = 'column'"),
        ("mmd.scales=[]", "mmd.scales"),
        ("mmd.weight=nan", "mmd.weight"),
        ("seed", "--set seed: expected section.key=value"),
        ("training=3", "training"),
    ],
)
def test_a_bad_setting_is_refused_in_one_line(setting, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Config().with_settings([setting])
    assert "\n" not in str(caught.value)


def test_pairs_are_sought_among_as_many_cells_as_are_drawn():
    with pytest.raises(ConfigError, match="pairing_cells 48 has no effect on pairing 'random'; leave it out"):
        Config().with_settings(["flow.pairing=random", "flow.pairing_cells=48"])
    assert Config().drawn_cells == 48
    assert Config().with_settings(["flow.pairing_cells=7"]).drawn_cells == 7
    assert Config().with_settings(["training.cells_per_condition=64"]).drawn_cells == 64
    assert Config().with_settings(["flow.pairing=random"]).drawn_cells == 6


def test_settings_reach_the_config():
    config = Config().with_settings(
        [
            "training.max_steps=5",
            "flow.genes_per_step=none",
            "mmd.bandwidths=[1, 2.5]",
            "split.kind=column",
            "split.column=fold",
        ]
    )
    assert config.training.max_steps == 5
    assert config.flow.genes_per_step is None
    assert config.mmd.bandwidths == (1.0, 2.5)
    assert config.split.column == "fold"


def test_a_file_goes_over_the_preset(tmp_path):
    path = tmp_path / "options.toml"
    path.write_text("seed = 4\n[training]\nmax_steps = 7\n")
    config = Config.load(path, Config.preset("tiny"))
    assert (config.seed, config.training.max_steps, config.model.width) == (4, 7, Config.preset("tiny").model.width)


def test_bad_files_and_presets_are_refused(tmp_path):
    path = tmp_path / "options.toml"
    with pytest.raises(ConfigError, match="cannot be read"):
        Config.load(path)
    path.write_text("seed = = 4")
    with pytest.raises(ConfigError, match="is not TOML"):
        Config.load(path)
    with pytest.raises(ConfigError, match="preset 'huge': expected one of default, instant, paper, tiny"):
        Config.preset("huge")


def test_a_split_of_kind_none_can_be_set_as_text() -> None:
    assert Config().with_settings(["split.kind=none"]).split.kind == "none"
    assert Config().with_settings(["model.latents=none"]).model.latents is None
