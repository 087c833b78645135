import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import safetensors.torch
import torch
from jobs import outcome
from typer.testing import CliRunner

from fullspectrum_ext.cli import app
from fullspectrum_ext.masks import MaskSet


def run(*arguments, code=0):
    """Run the command in this process; return what it printed, in one line."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return re.sub(r"[\s│]+", " ", result.output)


def test_bench_shows_every_layer_and_the_sums(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    arguments = ("bench", "--batch", 2, "--sparsity", "0.9", "--threads", 1)
    shown = run(*arguments)
    for text in ("mlp, batch 2, 1 threads", "fc3.weight 2x100 0.9", "break-even", "all layers"):
        assert text in shown
    found = json.loads(CliRunner().invoke(app, [*map(str, arguments), "--json"]).stdout)
    assert [row["layer"] for row in found["rows"]] == ["fc1.weight", "fc2.weight", "fc3.weight"]
    assert "--sparsity: expected numbers" in run("bench", "--sparsity", "much", code=2)


def start(*arguments, **options):
    """Start the command in a process of its own."""
    command = [sys.executable, "-P", "-c", "from fullspectrum_ext.cli import main; main()"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **options,
    )


def test_version_is_that_of_the_package():
    assert run("--version") == f"fullspectrum {version('fullspectrum-ext')} "


def test_help_explains_each_setting_with_its_default():
    text = run("train", "--help")

    for words in ("--learning-rate", "--config", "--fresh", "Default: 0.95", "Default: 0,1,2"):
        assert words in text


def test_info_says_what_is_on_and_why_the_rest_is_off():
    text = run("info")

    for words in ("torch", "python", "CPU kernels", "CUDA kernels", "GPU", "extra [plots]"):
        assert words in text
    assert re.search(r"CUDA kernels (loaded|not built|built, not loaded)", text)


def test_settings_are_shown_as_toml_that_can_be_read_back(tmp_path):
    file = tmp_path / "c.toml"
    shown = CliRunner().invoke(app, ["train", "--show-config", "--seeds", "4,5", "--threads", "1"])
    file.write_text(shown.output)

    again = CliRunner().invoke(app, ["train", "--show-config", "--config", str(file)])

    assert "seeds = [4, 5]" in shown.output
    assert again.output == shown.output


def test_a_dynamic_method_goes_on_from_the_methods_named():
    dynamic = ["--methods", "snip,pags:erk", "--dynamic", "rigl", "--update-every", "50"]
    shown = CliRunner().invoke(app, ["train", "--show-config", *dynamic]).output
    assert 'methods = ["snip+rigl", "pags:erk+rigl"]' in shown
    assert "update_every = 50" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["train", "--dynamic", "rigl", "--methods", "dense"],
            r"error: method: .* for rigl to go on from its masks, got 'dense\+rigl'",
        ),
        (
            ["train", "--sparsity", "1.5"],
            r"error: sparsity: expected a fraction in \[0, 1\), got 1.5",
        ),
        (["train", "--seeds", "one"], "error: seeds: expected whole numbers with commas"),
        (["train", "--model", "mpl"], "error: model: .*did you mean 'mlp'"),
        (["train", "--config", "none.toml"], "error: .*none.toml"),
        (["train", "--batchsize", "3"], "No such option: --batchsize"),
        (["train", "--epochs", "x"], "Invalid value for '--epochs'"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(arguments, words):
    assert re.search(words, run(*arguments, code=2))


def test_other_errors_keep_their_traceback(monkeypatch):
    def broken(*arguments, **options):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("fullspectrum_ext.cli.run_job", broken)

    result = CliRunner().invoke(app, ["train"])

    assert isinstance(result.exception, ZeroDivisionError)


def test_train_ends_with_one_table_and_a_figure(tmp_path):
    command = ["train", "--seeds", "0,1", "--epochs", 2, "--candidates", 3]
    command += ["--out", tmp_path, "--name", "x"]

    text = run(*command)

    for words in ("pags:snip", "snip", "erk", "0.9500", "2510 / 50200", "2 seeds", "seed 1: test"):
        assert words in text
    files = {file.name for file in (tmp_path / "x").iterdir()}
    assert files - {".lock"} == {
        *("config.toml", "records.jsonl", "results.json", "figure.png"),
        *("checkpoints", "masks", "traces"),
    }
    again = run(*command)
    assert "seed 1: test" not in again
    assert "pags:snip" in again
    meta = MaskSet.load(tmp_path / "x" / "masks" / "pags-snip-0.safetensors").meta
    assert meta["options"] == {"base": "snip", "candidates": 3, "drift": False}


def test_train_without_matplotlib_ends_with_a_line_on_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    text = run("train", "--methods", "erk", "--seeds", 0, "--epochs", 1, "--out", tmp_path)

    assert "No figure: matplotlib is needed" in text
    assert "fullspectrum-ext[plots]" in text


def test_pags_has_no_smaller_norm_than_its_base(tmp_path):
    bases = ["snip", "erk", "random"]
    methods = [name for base in bases for name in (f"pags:{base}", base)]
    for model in ("mlp", "convnet"):
        command = ["train", "--model", model, "--methods", ",".join(methods), "--seeds", 0]
        run(*command, "--epochs", 1, "--candidates", 5, "--out", tmp_path, "--name", model)
        results = json.loads((tmp_path / model / "results.json").read_text())
        norms = {figures["method"]: figures["norm_before"] for figures in results["runs"]}
        assert all(norms[f"pags:{base}"] >= norms[base] for base in bases)
        assert any(norms[f"pags:{base}"] > norms[base] for base in bases)


def test_score_shows_a_table_json_and_a_plot(tmp_path):
    file = tmp_path / "m.pt"
    torch.save({"a.weight": torch.eye(6), "b.weight": torch.ones(4, 6)}, file)

    text = run("score", file, "--plot", tmp_path / "p.png")
    both = json.loads(CliRunner().invoke(app, ["score", str(file), "--json"]).stdout)
    one = run("score", file, "--exclude", "a", "--flavor", "iclr")

    assert "a.weight" in text
    assert "b.weight" in text
    layer = both[str(file)]["layers"]["b.weight"]
    assert layer["sigma1"] == pytest.approx(24**0.5)  # K_{4,6}
    assert both[str(file)]["layers"]["a.weight"]["ramanujan_gap"] is None  # degree 1
    assert "a.weight" not in one
    assert "iclr" in one
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "flavor: expected 'neurips' or 'iclr'" in run("score", file, "--flavor", "x", code=2)


def test_score_writes_files_compares_and_names_patterns(tmp_path):
    first, second = tmp_path / "a.pt", tmp_path / "b.safetensors"
    pair = [[0.0, 1.0, 2.0, 0.0], [1.0, 0.0, 0.0, 2.0], [0.0, 0.0, 1.0, 2.0]]
    weight = torch.tensor(pair).repeat(6, 4)
    torch.save({"a.weight": weight}, first)
    safetensors.torch.save_file({"a.weight": weight * 3}, second)

    text = run("score", first)
    table = run("score", first, second, "--compare")
    assert run("score", first, "--csv", "--out", tmp_path / "out.csv") == ""
    assert run("score", first, second, "--compare", "--json", "--out", tmp_path / "c.json") == ""
    assert run("score", first, "--out", tmp_path / "t.txt") == ""
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    comparison = json.loads((tmp_path / "c.json").read_text())

    assert "2:4" in text
    assert "distance" in table
    assert [(row["layer"], row["pattern"]) for row in rows] == [("a.weight", "2:4")]
    assert "2:4" in (tmp_path / "t.txt").read_text()
    # Of three times the weights λ is three times as large.
    once = json.loads(run("score", first, "--json"))[str(first)]["layers"]["a.weight"]
    assert comparison["layers"]["a.weight"]["weighted_gap"] == pytest.approx(
        2 * once["weighted_gap"], rel=1e-6
    )
    assert comparison["distance"] == comparison["layers"]["a.weight"]["distance"] > 0
    assert run("score", first, second, "--compare", "--csv").startswith("layer,distance,")


def test_tables_show_whole_names_whatever_is_in_them(tmp_path):
    names = ["[/].weight", "model.layers.0.self_attn.q_proj.weight"]
    weight = 20 * torch.tensor([1.0, 0.0, 1.0, 0.0]).repeat(16, 8)
    weight[::2] = weight[::2].roll(1, dims=1)
    for file in ("a.pt", "b.pt"):
        torch.save(dict.fromkeys(names, weight), tmp_path / file)

    for arguments in ([tmp_path / "a.pt"], [tmp_path / "a.pt", tmp_path / "b.pt", "--compare"]):
        outcome = CliRunner().invoke(app, ["score", *map(str, arguments)])
        assert outcome.exit_code == 0, outcome.exception
        column = "".join(line.split("  ")[0].strip() for line in outcome.stdout.splitlines())
        assert all(name in column for name in names)
    assert " 1:2 " in run("score", tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.pt", "--compare"], "--compare: expected two different files, got 1"),
        (["a.pt", "a.pt", "--compare"], "--compare: expected two different files, got 1"),
        (["a.pt", "--json", "--csv"], "--json, --csv: expected at most one"),
        (["a.pt", "b.pt", "--compare"], "only one of the two has a.weight, b.weight"),
        (["a.pt", "nan.pt"], "nan.pt: .*finite"),
        (["a.pt", "--out", "folder"], "--out: expected a file to write, got the folder folder"),
        (["a.pt", "--out", "a.pt"], "--out: a.pt is one of the other files"),
        (["a.pt", "--plot", "out.txt"], "--plot: out.txt is one of the other files"),
        (["a.pt", "--plot", "out.pdf"], "--plot: expected a name that ends in .png, got out.pdf"),
        (["a.pt", "--out", "b.pt/out.txt"], "--out: expected a file in a folder, got b.pt/out.txt"),
    ],
)
def test_a_score_that_fails_writes_nothing(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    torch.save({"a.weight": torch.ones(3, 3)}, "a.pt")
    torch.save({"b.weight": torch.ones(3, 3)}, "b.pt")
    torch.save({"a.weight": torch.full((3, 3), float("nan"))}, "nan.pt")
    Path("folder").mkdir()
    files = {path: path.read_bytes() for path in tmp_path.glob("*.pt")}

    outcome = CliRunner().invoke(
        app, ["score", "--out", "out.txt", "--plot", "out.png", *arguments]
    )

    assert outcome.exit_code == 2
    assert outcome.stdout == ""
    assert re.fullmatch(rf"error: .*{words}.*\n", outcome.stderr)
    assert not list(tmp_path.glob("**/*out*"))
    assert {path: path.read_bytes() for path in tmp_path.glob("*.pt")} == files


def test_prune_writes_masks_and_shows_them(tmp_path):
    file = tmp_path / "m.safetensors"

    text = run("prune", "--model", "convnet", "--method", "erk", "--sparsity", 0.9, "--out", file)

    masks = MaskSet.load(file)
    assert masks.nnz == round(0.1 * masks.numel)
    assert f"{masks.nnz} / {masks.numel}" in text
    assert all(name in text for name in masks)


def test_prune_takes_a_model_and_data_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def net():\n"
        "    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 2))\n"
        "def batches():\n"
        "    return [(torch.ones(3, 6), torch.tensor([0, 1, 0]))]\n"
    )
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    weights = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 2)).state_dict()
    torch.save({"model": weights, "epoch": 3}, "w.pt")
    options = ["--model", "mine:net", "--data", "mine:batches", "--density", 0.5]

    run("prune", *options, "--weights", "w.pt", "--method", "magnitude")

    scores = torch.cat([weights[f"{i}.weight"].abs().flatten() for i in (0, 1)])
    kept = torch.cat([mask.flatten() for mask in MaskSet.load("masks.safetensors").values()])
    assert kept.sum() == 20
    assert scores[kept].min() > scores[~kept].max()
    run("prune", *options, "--method", "snip")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "snap"], "error: .*'snap'.*did you mean 'snip'"),
        (["--method", "erk:snip"], "error: method: only pags samples around a base"),
        (["--sparsity", "1"], r"error: sparsity: expected a fraction in \[0, 1\), got 1.0"),
        (
            ["--sparsity", "0.5", "--density", "0.5"],
            "error: sparsity, density: expected exactly one",
        ),
        (["--model", "nosuch:net"], "error: model: there is no module 'nosuch'"),
        (["--model", "mlpp"], "error: model: expected one of mlp, .*, or package.module:func"),
        (["--model", "os:getcwd"], "error: model: expected os:getcwd to return a torch.nn.Module"),
        (["--data", "os:nosuch"], "error: data: os has no 'nosuch'"),
        (["--data", "none"], "error: data: "),
        (["--weights", "none.pt"], "error: .*none.pt"),
    ],
)
def test_prune_refuses_in_words(arguments, words, tmp_path):
    file = tmp_path / "m.safetensors"

    assert re.search(words, run("prune", "--out", file, *arguments, code=2))

    assert not file.exists()


KILLED = ["--epochs", 50, "--batch-size", 64, "--threads", 1, "--seeds", "0,1"]
KILLED += ["--methods", "snip"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody killed."""
    path = tmp_path_factory.mktemp("whole")
    run("train", *KILLED, "--out", path, "--name", "x")
    return outcome(path / "x")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_killed_command_goes_on_to_the_same_results(tmp_path, whole, how):
    command = ["train", *KILLED, "--out", tmp_path, "--name", "x"]

    process = start(*command)
    records = tmp_path / "x" / "records.jsonl"
    deadline = time.monotonic() + 60
    while not records.exists() or records.read_bytes().count(b"\n") < 10:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(how)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130), printed
    assert not (tmp_path / "x" / "results.json").exists()
    run(*command)

    assert outcome(tmp_path / "x") == whole


@pytest.fixture
def plan(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'title = "Mine"\nmethods = ["erk", "random"]\nseeds = [0, 1]\n'
        "epochs = 1\nbatch_size = 512\n[[grid]]\nepochs = 1\n"
    )
    return file


def test_sweep_ends_with_a_table_and_shows_what_is_done(tmp_path, plan):
    command = ["sweep", plan, "--out", tmp_path, "--jobs", 1]

    shown = run(*command, "--show")
    assert "mine: 4 runs, 0 finished" in shown
    assert shown.count("to do") == 4
    assert not (tmp_path / "mine").exists()
    half = run(*command, "--shard", "1/2")
    assert "mine: 2 of 4 runs in this shard, 0 finished" in half
    assert "digits, mlp, 0.95, erk, seed 1: test accuracy" in half
    assert "2 of the plan's 4 runs are not finished." in half
    whole = run(*command)
    assert whole.count("seed") == 3  # two runs and the head of a column
    assert re.search(r"Mine .* mlp 0\.95 erk 2 [\d.]+ ± [\d.]+ digits mlp 0\.95 random 2", whole)
    assert "not finished" not in whole
    assert run(*command, "--show").count("finished") == 5
    assert run(*command, "--fresh").count("seed") == 5


def test_a_sweep_with_a_failure_names_it_and_ends_with_code_1(tmp_path, plan):
    plan.write_text(
        'methods = ["erk", "dense"]\nseeds = [0]\nepochs = 2\nbatch_size = 512\n'
        '[[grid]]\n[[grid]]\nsparsities = [0.5]\noptimizer = "sgd"\nlearning_rate = 1e30\n'
    )

    printed = run("sweep", plan, "--out", tmp_path, "--jobs", 1, code=1)

    assert printed.count("failed: learning_rate: the loss became nan in epoch 1") == 2
    assert printed.count("seed 0: test accuracy") == 2
    assert re.search(r"Failed runs; .* digits, mlp, 0\.5, erk, seed 0 .* 0\.5, dense, se", printed)
    assert "digits mlp 0.95 erk 1 " in printed
    assert run("sweep", plan, "--out", tmp_path, "--show").count("failed") == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.toml"], "error: .*nowhere.toml"),
        (["mine.toml", "--shard", "3/2"], "error: --shard: expected i/n"),
        (["mine.toml", "--jobs", "-1"], "error: --jobs: expected at least 0, got -1"),
        (["bad.toml"], "error: bad.toml: unknown key 'epoch' .did you mean 'epochs'"),
    ],
)
def test_a_sweep_that_cannot_be_is_one_line(tmp_path, monkeypatch, plan, arguments, words):
    (tmp_path / "bad.toml").write_text("epoch = 1\n")
    monkeypatch.chdir(tmp_path)
    assert re.search(words, run("sweep", *arguments, code=2))
    assert not (tmp_path / "runs").exists()
