import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import pytest
from jobs import outcome
from typer.testing import CliRunner

from fullspectrum_ext.cli import app


def run(*arguments, code=0):
    """Run the command in this process; return what it printed, in one line."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return re.sub(r"[\s│]+", " ", result.output)


def start(*arguments, **options):
    """Start the command in a process of its own."""
    command = [sys.executable, "-c", "from fullspectrum_ext.cli import main; main()"]
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
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


KILLED = ["--epochs", 50, "--batch-size", 64, "--threads", 1, "--seeds", "0,1"]
KILLED += ["--methods", "dense"]


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
