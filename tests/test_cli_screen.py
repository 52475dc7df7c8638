"""The options that describe a screen: on every command that reads one, and what they become."""

from __future__ import annotations

import inspect
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from scdfm import Config, DataConfig, Run, fit, identify, read_cells, simulate
from scdfm.cli import app
from scdfm.cli.screen import Reader, reads_screen
from scdfm.errors import ScdfmError

OPTIONS = (
    "--perturbation-key", "--control", "--covariates", "--dose-key", "--time-key", "--match-controls",
    "--control-fallback", "--target-sum", "--layer", "--min-cells", "--subset", "--backed", "--config", "--exclude",
    "--separator", "--guides", "--gene-column",
)  # fmt: skip


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("columns") / "screen.h5ad"
    obs = pd.DataFrame(
        {
            "drug": ["DMSO", "DMSO", "DMSO", "X", "X", "Y"],
            "line": ["a", "a", "b", "a", "b", "b"],
            "batch": [1, 2, 1, 1, 1, 2],
            "dose": [0, 0, 0, 0.5, 10, 10],
            "hours": [0, 0, 0, 24, 24, 6],
        },
        index=[f"c{i}" for i in range(6)],
    )
    x = np.random.default_rng(0).poisson(3, (6, 4)).astype(np.float32)
    ad.AnnData(np.zeros((6, 4), np.float32), obs=obs, layers={"counts": x}).write_h5ad(path)
    return path


def shown(*arguments: object) -> str:
    """What a command made with `reads_screen` reads: its conditions and each one's control rows."""
    made = typer.Typer()

    @made.command()
    @reads_screen(control="DMSO")
    def show(data: Path, screen: Reader) -> None:
        cells = screen.read(data)
        for name in cells.conditions:
            typer.echo(f"{name}: {cells.control_rows(name).tolist()}")

    result = CliRunner().invoke(made, list(map(str, arguments)))
    if result.exception is not None:
        raise result.exception
    return result.output


def test_the_options_reach_the_reader(screen: Path) -> None:
    given = ["--perturbation-key", "drug", "--layer", "counts", "--target-sum", "100"]
    assert shown(screen, *given) == "control: [0, 1, 2]\nX: [0, 1, 2]\nY: [0, 1, 2]\n"
    columns = ["--covariates", "line", "--dose-key", "dose", "--time-key", "hours"]
    assert shown(screen, *given, *columns).splitlines() == [
        "control: [0, 1, 2]",
        "X@0.5|line=a|time=24: [0, 1]",
        "X@10|line=b|time=24: [2]",
        "Y@10|line=b|time=6: [2]",
    ]
    matched = shown(
        screen, *given, "--covariates", "line", "--match-controls", "line, batch", "--control-fallback", "all"
    )
    assert matched.splitlines()[1:] == ["X|line=a: [0]", "X|line=b: [2]", "Y|line=b: [0, 1, 2]"]
    unmatched = shown(screen, *given, "--covariates", "line", "--match-controls", "none")
    assert unmatched.splitlines()[1] == "X|line=a: [0, 1, 2]"
    few = shown(screen, *given, "--subset", "line=b", "--subset", "batch=1", "--min-cells", 1)
    assert few == "control: [0]\nX: [0]\n"
    assert "Y" not in shown(screen, *given, "--min-cells", 2)


def test_a_file_declares_what_flags_do_and_flags_go_over_it(screen: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        'seed = 7\n[data]\nperturbation_key = "drug"\nlayer = "counts"\ntarget_sum = 100\ncovariates = ["line"]\n'
        'dose_key = "dose"\ntime_key = "hours"\nmatch_controls = []\nmin_cells = 1\nsubset = {batch = 1}\n'
    )
    flags = [
        "--perturbation-key", "drug", "--layer", "counts", "--target-sum", "100", "--covariates", "line", "--dose-key",
        "dose", "--time-key", "hours", "--match-controls", "none", "--subset", "batch=1",
    ]  # fmt: skip
    by_file = shown(screen, "--config", tmp_path / "c.toml")
    assert by_file == shown(screen, *flags)
    assert by_file.splitlines()[1:] == ["X@0.5|line=a|time=24: [0, 1]", "X@10|line=b|time=24: [0, 1]"]
    over = shown(screen, "--config", tmp_path / "c.toml", "--covariates", "none", "--subset", "batch=2")
    assert over.splitlines()[1:] == ["Y@10|time=6: [0]"]
    declared = DataConfig.load(tmp_path / "c.toml", DataConfig(control="DMSO"))
    assert read_cells(screen, **declared.options()).conditions[1:] == ("X@0.5|line=a|time=24", "X@10|line=b|time=24")
    # Of the same file, Config takes the rest.
    assert Config.load(tmp_path / "c.toml") == Config(seed=7)


def test_labels_are_flags_that_may_be_repeated(tmp_path: Path) -> None:
    labels = ["NT_sg1", "DMSO", "X_sg1|Y_sg2", "X_sg2", "Y_sg1", "nobody, knows"]
    obs = pd.DataFrame({"guide": labels}, index=[f"c{i}" for i in range(6)])
    var = pd.DataFrame({"symbol": ["X", "Y"]}, index=["E1", "E2"])
    values = np.log1p(np.arange(1, 13).reshape(6, 2) / 7).astype(np.float32)
    ad.AnnData(values, obs=obs, var=var).write_h5ad(tmp_path / "x.h5ad")
    flags = [
        "--perturbation-key", "guide", "--control", "NT_*", "--control", "DMSO", "--exclude", "nobody, knows",
        "--separator", "|", "--guides", "GENE_sg*", "--gene-column", "symbol",
    ]  # fmt: skip
    said = shown(tmp_path / "x.h5ad", *flags)
    assert said.splitlines()[-4:] == ["control: [0, 1]", "X: [0, 1]", "X+Y: [0, 1]", "Y: [0, 1]"]
    (tmp_path / "c.toml").write_text(
        '[data]\nperturbation_key = "guide"\ncontrol = ["NT_*", "DMSO"]\nexclude = ["nobody, knows"]\nseparator = "|"\n'
        'guides = ["GENE_sg*"]\ngenes = "symbol"\n'
    )
    assert shown(tmp_path / "x.h5ad", "--config", tmp_path / "c.toml") == said


def test_the_declaration_holds_every_option_of_read_cells() -> None:
    parameters = inspect.signature(read_cells).parameters
    assert set(DataConfig.model_fields) == set(parameters) - {"path_or_adata", "backed"}
    for name, field in DataConfig.model_fields.items():
        assert (field.get_default(call_default_factory=True) or None) == (parameters[name].default or None), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--match-controls", "line,batch", "--covariates", "line"], "of line=b, batch=2 have no control cells"),
        (["--control-fallback", "some"], "control_fallback: Input should be 'error' or 'all'"),
        (["--covariates", "lime"], "covariate column 'lime' is not in obs"),
        (["--covariates", "line,line"], "column 'line' is named twice"),
        (["--dose-key", "line"], "dose 'a' in obs column 'line'"),
        (["--target-sum", "many"], "--target-sum many: expected a number such as 10000, or median"),
        (["--subset", "line"], "--subset line: expected COLUMN=VALUE"),
    ],
)
def test_refusals(screen: Path, options: list[str], message: str) -> None:
    with pytest.raises(ScdfmError, match=message):
        shown(screen, "--perturbation-key", "drug", "--layer", "counts", "--target-sum", "100", *options)


@pytest.mark.parametrize("name", ["fit", "evaluate", "benchmark", "convert-official"])
def test_every_command_that_reads_a_screen_has_them(name: str) -> None:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    flags = {flag for parameter in command.params for flag in parameter.opts}
    assert set(OPTIONS) <= flags
    assert command.help


def test_cell_types_from_the_command_line(call, tmp_path: Path) -> None:
    """A held-out cell type: the benchmark's rules and file, then evaluate and its report, each against its own controls."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        [(p, t, d) for t in "abc" for p, d in (("NT", 0), ("A", 1), ("A", 10), ("B", 1)) for _ in range(8)],
        columns=["drug", "kind", "dose"],
    )
    obs.index = pd.Index([f"c{i}" for i in range(len(obs))])
    x = rng.gamma(2.0, 0.5, (len(obs), 20)).astype(np.float32) + (obs["kind"] == "a").to_numpy()[:, None]
    ad.AnnData(x.astype(np.float32), obs=obs).write_h5ad(tmp_path / "screen.h5ad")
    tested = ((obs["kind"] == "a") & (obs["drug"] != "NT")).to_numpy()
    noisy = x[tested] * rng.uniform(0.7, 1.3, (tested.sum(), 20)).astype(np.float32)
    ad.AnnData(noisy, obs=obs[tested]).write_h5ad(tmp_path / "mine.h5ad")
    columns = ["--perturbation-key", "drug", "--control", "NT", "--covariates", "kind", "--dose-key", "dose"]
    code, out, err = call(
        "benchmark", tmp_path / "screen.h5ad", "--out", tmp_path / "bench", "--split", "covariate:kind=a",
        "--models", f"file:mine={tmp_path / 'mine.h5ad'}", "--metrics", "l2,ds", "--quiet", *columns,
    )  # fmt: skip
    assert code == 0, err
    assert "control cells are those of the same kind" in out
    code, out, err = call(
        "evaluate", tmp_path / "mine.h5ad", tmp_path / "screen.h5ad", "--out", tmp_path / "score", "--metrics", "l2,ds",
        *columns,
    )  # fmt: skip
    assert code == 0, err
    scores = pd.read_csv(tmp_path / "score" / "scores.csv")
    assert set(scores["condition"]) == {"A@1|kind=a", "A@10|kind=a", "B@1|kind=a"}
    own = scores[(scores["model"] == "no change") & (scores["metric"] == "l2")]["value"]
    assert own.max() < 3  # the level of the type, 1 for each of 20 genes, is no shift
    assert (tmp_path / "score" / "report.html").is_file()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `mixed.h5ad`, two screens of which `b` is in counts, `cut.h5ad`, which is `a` alone and does not say
    so, and a run and a prediction of `a`."""
    folder = tmp_path_factory.mktemp("mixed")
    one = simulate(n_genes=40, n_targets=5, cells_per_condition=10, n_controls=20, seed=3)
    other = simulate(n_genes=40, n_targets=5, cells_per_condition=10, n_controls=20, seed=3)
    one.write_h5ad(folder / "cut.h5ad")
    one.obs["dataset"], other.obs["dataset"] = "a", "b"
    other.X = other.layers["counts"]
    ad.concat([one, other], index_unique="-").write_h5ad(folder / "mixed.h5ad")
    cells = read_cells(folder / "mixed.h5ad", subset={"dataset": "a"}, min_genes=1)
    config = Config.preset("instant").updated({"panel": {"n_genes": 30}, "graph": {"k": 5}})
    run = fit(cells, config=config, out=folder / "run", progress=False)
    run.predict(n_cells=5).write_h5ad(folder / "p.h5ad")
    return folder


def test_a_run_reads_its_screen_again_as_a_part_of_a_mixed_file(call, mixed) -> None:
    """The subset comes from the run: scores are those of the part; a file that cannot tell its parts says the way."""
    run = Run.load(mixed / "run")
    assert (run.manifest.subset, run.manifest.min_genes) == ({"dataset": "a"}, 1)
    said = {}
    for name, options in (("mixed", ()), ("cut", ("--subset", "none"))):
        asked = ("evaluate", mixed / "p.h5ad", mixed / f"{name}.h5ad", "--run", mixed / "run", "--metrics", "l2")
        code, _, error = call(*asked, "--out", mixed / f"scores_{name}", *options, "--quiet")
        assert code == 0, error
        said[name] = pd.read_csv(mixed / f"scores_{name}" / "scores.csv")["value"]
    np.testing.assert_allclose(said["mixed"], said["cut"], rtol=1e-6)
    asked = ("evaluate", mixed / "p.h5ad", mixed / "cut.h5ad", "--run", mixed / "run", "--out", mixed / "no")
    code, _, error = call(*asked)
    assert code == 2
    assert "no column 'dataset', by which the cells of the run were chosen (dataset=a)" in error
    assert "--subset none" in error
    code, _, error = call(*asked[:2], mixed / "mixed.h5ad", *asked[3:], "--subset", "none")
    assert (code, "no log1p" in error or "counts" in error) == (2, True)  # the other half is of another scale
    hits = ("hits", mixed / "p.h5ad", mixed / "mixed.h5ad", "--run", mixed / "run", "--out", mixed / "h.csv")
    assert "1 scored conditions" in call(*hits)[2]  # its cells are read, and too few to rank
    assert "1 scored conditions" not in call(*hits, "--subset", "none")[2]


def test_observed_cells_of_a_mixed_file_are_those_of_the_runs_part_and_controls_are_not_chosen(mixed) -> None:
    run = Run.load(mixed / "run")
    name = run.split.train[0]
    own = identify(run, mixed / "mixed.h5ad", condition=name, order=1, cells=8, shortlist=2)
    cut = ad.read_h5ad(mixed / "cut.h5ad")
    alone = identify(run, cut[cut.obs["perturbation"] == name].copy(), order=1, cells=8, shortlist=2)
    pd.testing.assert_frame_equal(own.table, alone.table)
    assert run.read_controls(mixed / "cut.h5ad").n == 20
