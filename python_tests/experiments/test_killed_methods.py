"""``kill -9`` of the command amid methods that prune in the course of training."""

import multiprocessing
import signal
import sys
import time

from jobs import outcome

from fullspectrum_ext import cli
from fullspectrum_ext.experiments import RunFolder, load_config, train

SETTINGS = """
methods = ["gmp", "imp", "probmask", "kstarts", "snip+rigl"]
seeds = [0]
epochs = 3
rewind_epoch = 0
sparsity = 0.3
batch_size = 256
threads = 1
"""
# gmp 1 to 3, imp 4 to 12 in three stages, probmask 13 to 15, kstarts 16 to 18, snip+rigl 19 to 21
MOMENTS = [2, 8, 14, 16, 19]


def test_a_command_killed_in_every_method_ends_with_the_same_records(tmp_path, monkeypatch):
    file, folder = tmp_path / "settings.toml", tmp_path / "killed"
    file.write_text(SETTINGS)
    config = load_config(file)
    train(config, RunFolder(tmp_path / "whole"))

    command = ["fullspectrum", "train", "--config", file, "--out", tmp_path, "--name", folder.name]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # processes of their own, which need not import all that is slow to import
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["fullspectrum_ext.experiments", "sklearn.datasets"])
    records = folder / "records.jsonl"
    for moment in MOMENTS:
        process = processes.Process(target=cli.main)
        process.start()
        deadline = time.monotonic() + 60
        while not records.exists() or records.read_bytes().count(b"\n") < moment:
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (folder / "results.json").exists()
    train(config, RunFolder(folder))

    assert outcome(folder) == outcome(tmp_path / "whole")
