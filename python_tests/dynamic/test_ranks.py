"""Several processes: dynamic_ranks.py holds what they find out, each run of them once."""

import json
import os
import pathlib
import subprocess
import sys

import dynamic_ranks
import pytest
import torch

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="needs torch.distributed with gloo"
)

WITH_FOUR = [
    "five_hundred_updates_keep_one_topology",
    "rigl_grows_what_one_process_with_the_whole_batch_does",
    "a_rank_that_is_made_to_differ_is_named_at_the_next_update",
    "ranks_whose_weights_have_parted_are_named_and_nothing_changes",
    "what_was_sent_is_told",
]


def run(folder, size, names):
    tests = pathlib.Path(dynamic_ranks.__file__)
    environment = {**os.environ, "PYTHONPATH": str(tests.parent), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-P", str(tests), str(folder), str(rank), str(size), *names],
            env=environment,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"{rank}.log").open("w"),
        )
        for rank in range(size)
    ]
    try:
        for process in processes:
            process.wait(timeout=300)
    finally:
        for process in processes:
            process.kill()
    found = []
    for rank in range(size):
        path = folder / f"{rank}.json"
        assert path.exists(), (folder / f"{rank}.log").read_text()[-3000:]
        found.append(json.loads(path.read_text()))
    return found


@pytest.fixture(scope="module")
def found_by_two(tmp_path_factory):
    return run(tmp_path_factory.mktemp("two"), 2, dynamic_ranks.CHECKS)


@pytest.fixture(scope="module")
def found_by_four(tmp_path_factory):
    return run(tmp_path_factory.mktemp("four"), 4, WITH_FOUR)


def say(found, name):
    for rank, results in enumerate(found):
        assert name in results, f"rank {rank} did not come to it"
        assert results[name] is None, f"rank {rank}: {results[name]}"


@pytest.mark.parametrize("name", dynamic_ranks.CHECKS)
def test_two_processes(found_by_two, name):
    say(found_by_two, name)


@pytest.mark.parametrize("name", WITH_FOUR)
def test_four_processes(found_by_four, name):
    say(found_by_four, name)
