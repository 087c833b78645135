"""Sweeps in processes of their own, and what is left of them after signals."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import left_of_sweep

from fullspectrum_ext.experiments.plan import load_plan
from fullspectrum_ext.experiments.sweep import Sweep

PLAN = 'methods = ["snip", "erk"]\nseeds = [0, 1]\nepochs = 6\nbatch_size = 64\n'


@pytest.fixture
def plan(tmp_path):
    file = tmp_path / "plan.toml"
    file.write_text(PLAN)
    return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The sweep in one process that nobody killed."""
    path = tmp_path_factory.mktemp("whole")
    (path / "plan.toml").write_text(PLAN)
    Sweep(load_plan(path / "plan.toml"), path / "sweep").run(1)
    return left_of_sweep(path / "sweep")


def test_two_processes_find_the_same_as_one_and_one_of_them_may_die(
    tmp_path, monkeypatch, plan, whole
):
    (tmp_path / "mine.py").write_text(
        "import os, signal\ndef net():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.chdir(tmp_path)
    bad = 'models = ["mine:net"]\nmethods = ["snip"]\nseeds = [0]\n'
    plan.write_text(f"{PLAN}[[grid]]\n[[grid]]\n{bad}")

    ended = Sweep(load_plan(plan), tmp_path / "sweep").run(2)

    (failed,) = (outcome for outcome in ended if outcome.status == "failed")
    assert failed.config.model == "mine:net"
    assert failed.message == "its process was ended by SIGKILL; out of memory?"
    (file,) = tmp_path.rglob("error.txt")
    assert file.read_text() == failed.message + "\n"
    file.unlink()
    shutil.rmtree(file.parents[1])
    assert left_of_sweep(tmp_path / "sweep") == whole


def start(*arguments):
    """Start ``fullspectrum sweep`` with two workers, in a session of its own."""
    command = [sys.executable, "-P", "-c", "from fullspectrum_ext.cli import main; main()"]
    return subprocess.Popen(
        [*command, "sweep", *map(str, arguments), "--jobs", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_until(condition, process=None):
    deadline = time.monotonic() + 60
    while not condition():
        assert process is None or process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children(process):
    """Process ids of what it started."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux")
def test_interrupted_and_killed_it_ends_as_if_nothing_had_been(tmp_path, plan, whole):
    path = tmp_path / "sweep"
    arguments = plan, "--out", tmp_path, "--name", "sweep"

    process = start(*arguments)
    wait_until(lambda: len(children(process)) == 3, process)  # one is multiprocessing's own
    begun = children(process)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal
    printed = process.communicate(timeout=20)[0]
    assert process.returncode == 130, printed
    assert printed.endswith("Interrupted; the same command goes on from here.\n")
    assert "Traceback" not in printed
    wait_until(lambda: not any(map(is_running, begun)))

    process = start(*arguments)
    wait_until(lambda: len(list(path.rglob("results.json"))) == 1, process)
    begun = children(process)
    process.kill()
    process.communicate(timeout=20)
    assert len(begun) == 3
    wait_until(lambda: not any(map(is_running, begun)))

    Sweep(load_plan(plan), path).run(1)
    assert left_of_sweep(path) == whole
