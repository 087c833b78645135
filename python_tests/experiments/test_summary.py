import dataclasses
import io

import pytest
from jobs import SMALL
from rich.console import Console

from fullspectrum_ext.experiments import RunFolder, train
from fullspectrum_ext.experiments.extras import MissingExtraError
from fullspectrum_ext.experiments.summary import draw_figure, results_table

RUN = {
    "kept": 50,
    "total": 1000,
    "sparsity": 0.95,
    "norm_before": 1.0,
    "norm_after": 2.0,
    "anchor_distance": 0.5,
    "pruning_seconds": 3.0,
    "training_seconds": 4.0,
}


def text_of(results):
    file = io.StringIO()
    Console(width=80, file=file).print(results_table(results))
    return file.getvalue()


def test_the_table_holds_means_and_standard_deviations_over_seeds():
    runs = [
        {**RUN, "method": method, "seed": seed, "test_accuracy": accuracy}
        for method, seed, accuracy in [("a", 0, 0.9), ("b", 0, 0.5), ("a", 1, 0.92)]
    ]
    text = text_of({"config": {"data": "d", "model": "m", "seeds": [0, 1]}, "runs": runs})

    # 90 and 92: mean 91, sample standard deviation sqrt(2).
    lines = [line.split() for line in text.splitlines() if line.strip()]
    rows = {first: " ".join(rest) for first, *rest in lines}
    assert rows["a"] == "0.9500 91.00 ± 1.41 1.00 ± 0.00 0.50 ± 0.00 3.0 + 4.0"
    assert rows["b"] == "0.9500 50.00 1.00 0.50 3.0 + 4.0"
    assert "50 / 1000" in text
    assert "2 seeds" in text


def test_the_table_says_how_much_of_a_teachers_support_was_found():
    runs = [
        {**RUN, "method": "a", "seed": seed, "test_accuracy": 0.9, "support_recovered": share}
        for seed, share in [(0, 0.2), (1, 0.24)]
    ]
    text = text_of({"config": {"data": "d", "model": "m", "seeds": [0, 1]}, "runs": runs})

    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "a 0.9500 90.00 ± 0.00 1.00 ± 0.00 0.50 ± 0.00 3.0 + 4.0" in lines
    assert "50 / 1000 22.00 ± 2.83 2.00 ± 0.00" in lines


def test_the_figure_is_drawn_from_the_run_folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    train(dataclasses.replace(SMALL, epochs=1), folder)

    draw_figure(folder)

    assert folder.figure.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)

    with pytest.raises(MissingExtraError, match=r"matplotlib.*fullspectrum-ext\[plots\]"):
        draw_figure(RunFolder(tmp_path))
