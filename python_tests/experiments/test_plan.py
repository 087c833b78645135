import dataclasses
import math
from pathlib import Path

import pytest

from fullspectrum_ext.experiments import TrainConfig
from fullspectrum_ext.experiments.plan import load_plan, run_path
from fullspectrum_ext.experiments.sweep import Sweep


@pytest.fixture
def plan(tmp_path):
    def load(text):
        file = tmp_path / "mine.toml"
        file.write_text(text)
        return load_plan(file)

    return load


def runs_of(plan):
    return [
        (run.model, run.sparsity, run.methods[0], run.seeds[0], run.epochs) for run in plan.runs
    ]


def test_without_grids_the_top_level_is_the_grid_one_seed_after_the_other(plan):
    found = plan(
        'models = ["mlp", "convnet"]\nsparsities = [0.9, 0.98]\nmethods = ["snip", "erk"]\n'
        "seeds = [3, 1]\nepochs = 5\nbatch_size = 7\n"
    )

    assert runs_of(found) == [
        (model, sparsity, method, seed, 5)
        for seed in (3, 1)
        for model in ("mlp", "convnet")
        for sparsity in (0.9, 0.98)
        for method in ("snip", "erk")
    ]
    assert all(run.batch_size == 7 for run in found.runs)
    assert (found.name, found.title, found.published) == ("mine", "mine", ())


def test_an_empty_plan_is_what_train_runs_without_arguments(plan):
    config = TrainConfig()

    runs = plan("").runs

    assert runs == tuple(
        dataclasses.replace(config, methods=(method,), seeds=(seed,))
        for seed in config.seeds
        for method in config.methods
    )


def test_grids_override_the_top_level_and_what_they_share_is_run_once(plan):
    found = plan(
        'name = "a b"\ntitle = "T"\nseeds = [0]\nmethods = ["snip"]\nsparsities = [0.9]\n'
        "[[grid]]\nseeds = [0, 1]\n"
        '[[grid]]\nmethods = ["erk", "snip"]\n'
        '[[grid]]\nmodels = ["convnet"]\nepochs = 3\n'
    )

    assert runs_of(found) == [
        ("mlp", 0.9, "snip", 0, 40),
        ("mlp", 0.9, "snip", 1, 40),
        ("mlp", 0.9, "erk", 0, 40),
        ("convnet", 0.9, "snip", 0, 3),
    ]
    assert (found.name, found.title) == ("a b", "T")


def test_published_numbers_are_rows(plan):
    (row, other) = plan(
        '[[published]]\nmodel = "vgg16"\nmethod = "snip"\nsparsity = 0.9\naccuracy = 93\n'
        'spread = 0.2\nsource = "Table 1"\n'
        '[[published]]\nmodel = "vgg16"\nmethod = "erk"\nsparsity = 0\naccuracy = 92.5\n'
        'source = "Table 2"\n'
    ).published

    assert (row.model, row.method, row.sparsity) == ("vgg16", "snip", 0.9)
    assert (row.accuracy, row.spread, row.source) == (93.0, 0.2, "Table 1")
    assert math.isnan(other.spread)


def test_every_run_has_a_folder_of_its_own(plan):
    found = plan('models = ["mlp", "a.b:c"]\nmethods = ["pags:snip", "snip", "imp:lr"]\n')

    paths = [run_path(run).as_posix() for run in found.runs]

    assert len(set(paths)) == len(paths) == 18
    assert "digits-a.b-c-0.95/pags-snip-2" in paths
    assert not any(":" in path for path in paths)


def test_a_plan_for_a_gpu_can_be_read_without_one_and_not_run(plan, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    found = plan('device = "cuda"\nthreads = 0\n')

    assert found.runs[0].device == "cuda"
    with pytest.raises(ValueError, match="device: 'cuda' asked for, but torch finds no CUDA"):
        Sweep(found, tmp_path / "sweep").run(1)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch = 3", "unknown key 'epoch' .did you mean 'epochs'"),
        ("[[gird]]\n", "unknown key 'gird' .did you mean 'grid'"),
        ("[[grid]]\n[[grid]]\nmethod = 3", r"\[\[grid\]\] 2: unknown key 'method' .*'methods'"),
        ('model = "mlp"', r"model: in a plan write models = \['mlp'\]"),
        ("[[grid]]\nsparsity = 0.9", r"grid\]\] 1: sparsity: in a plan write sparsities = \[0.9\]"),
        ('[[grid]]\ntitle = "T"', r"grid\]\] 1: title: expected it above the first \[\[grid\]\]"),
        ("models = []", "models: expected at least one, got none"),
        ("sparsities = [0.9, 0.9]", "sparsities: expected each one once, got 0.9 twice"),
        ("sparsities = 0.9", "sparsities: expected a list, got 0.9"),
        ('sparsities = ["0.9"]', "sparsities: expected a number, got '0.9'"),
        ("seeds = 3", "seeds: expected a list, got 3"),
        ("sparsities = [0.9, 1.5]", r"sparsity: expected a fraction in \[0, 1\), got 1.5"),
        ('models = ["mlp", "mpl"]', "model: expected one of .*did you mean 'mlp'"),
        ('[[grid]]\n[[grid]]\nmethods = ["snpi"]', r"grid\]\] 2: .*'snpi'.*did you mean 'snip'"),
        ("name = 3", "name: expected text, got 3"),
        ('name = ""', "name: expected text, got ''"),
        ('name = "a/b"', "name: expected the name of a folder, got 'a/b'"),
        ('name = ".."', "name: expected the name of a folder, got '..'"),
        ("grid = 3", r"grid: expected tables, each below a line \[\[grid\]\]"),
        ("[grid]\nepochs = 3", r"grid: expected tables, each below a line \[\[grid\]\]"),
        ("epochs: 3", "mine.toml: expected a TOML file"),
        (
            "seeds = [0]\n[[grid]]\nepochs = 3\n[[grid]]\nepochs = 4",
            r"grid\]\] 2: asks for the run digits-mlp-0.95/pags-snip-0 with other settings than "
            r".*grid\]\] 1 \(epochs = 4, not 3\)",
        ),
        ('[[published]]\nmodel = "mlp"', r"published\]\] 1: expected method, which is missing"),
    ],
)
def test_mistakes_are_named_with_their_place(plan, text, words):
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        plan(text)
    assert "mine.toml: " in str(caught.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('accurracy = 3\nsource = "x"', "unknown key 'accurracy' .did you mean 'accuracy'"),
        ('accuracy = 101\nsource = "x"', "accuracy: expected percent, 0 to 100, got 101"),
        ('accuracy = "93"\nsource = "x"', "accuracy: expected a number, got '93'"),
        ('accuracy = 93\nspread = -1\nsource = "x"', "spread: expected a number >= 0, got -1"),
    ],
)
def test_mistakes_in_published_numbers_are_named(plan, row, words):
    first = '[[published]]\nmodel = "mlp"\nmethod = "snip"\nsparsity = 0.9\n'
    with pytest.raises(
        (ValueError, TypeError), match=rf"mine\.toml: \[\[published\]\] 2: .*{words}"
    ):
        plan(f'{first}accuracy = 1\nsource = "x"\n{first}{row}')


def test_the_plan_of_the_documentation_is_one(plan):
    text = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text(encoding="utf-8")

    found = plan(text.split("```toml\n")[1].split("```")[0])

    assert len(found.runs) == 2 * 3 * 4 * 5 + 2 * 3 * 5 + 2 * 5
    assert found.published[0].accuracy == 91.2
