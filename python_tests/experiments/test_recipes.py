"""The plans in docs/recipes: every run is one that can be started, every published row has runs."""

from pathlib import Path

import pytest
import torch

from fullspectrum_ext.experiments.data import DATASETS
from fullspectrum_ext.experiments.methods import make_procedure
from fullspectrum_ext.experiments.models import MODELS
from fullspectrum_ext.experiments.plan import load_plan

RECIPES = sorted((Path(__file__).parents[2] / "docs" / "recipes").glob("*.toml"))
RUNS = {
    "digits-smoke": 2 * 2 * 4 * 2,
    "iclr2023-pai-cifar10": 2 * 3 * 6 * 3,
    "pags-cifar10": 2 * 10 * 3,
    "wrn-22-2-cifar10": 3 * 3,
}
PUBLISHED = {"iclr2023-pai-cifar10": 36, "pags-cifar10": 2, "wrn-22-2-cifar10": 2}


@pytest.fixture(params=RECIPES, ids=lambda file: file.stem)
def file(request):
    return request.param


def test_a_recipe_is_a_plan_whose_published_rows_have_runs(file):
    plan = load_plan(file)

    assert plan.name == file.stem
    assert len(plan.runs) == RUNS[plan.name]
    assert len(plan.published) == PUBLISHED.get(plan.name, 0)
    cells = [(run.model, run.methods[0], run.sparsity) for run in plan.runs]
    rows = [(row.model, row.method, row.sparsity) for row in plan.published]
    assert set(rows) <= set(cells)
    assert len(set(rows)) == len(rows)
    for row in plan.published:
        assert 10 <= row.accuracy < 100
        assert row.source


def test_every_run_can_be_started(file):
    runs = load_plan(file).runs
    for run in runs:
        stages = make_procedure(run.methods[0], run, run.seeds[0]).stages
        assert sum(stage.epochs for stage in stages) >= run.epochs
    for data, name in {(run.data, run.model) for run in runs}:
        with torch.device("meta"):
            model = MODELS[name](DATASETS[data].shape, 10)
        assert model(torch.empty(2, *DATASETS[data].shape, device="meta")).shape == (2, 10)


def test_the_command_to_run_it_is_in_the_file(file):
    text = file.read_text()
    assert f"fullspectrum sweep docs/recipes/{file.name}" in text
    assert f"fullspectrum report runs/{file.stem}" in text
    if "cuda" in text:
        assert "Nobody has run this recipe yet" in text
