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
    "what_was_sent_is_told",
]


TESTS = pathlib.Path(dynamic_ranks.__file__).parent


def environment():
    return {
        **os.environ,
        "PYTHONPATH": str(TESTS),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def run(folder, size, names):
    script = str(TESTS / "dynamic_ranks.py")
    processes = [
        subprocess.Popen(
            [sys.executable, "-P", script, str(folder), str(rank), str(size), *names],
            env=environment(),
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
def folder_of_two(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def found_by_two(folder_of_two):
    return run(folder_of_two, 2, dynamic_ranks.CHECKS)


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


def test_a_killed_process_leads_to_the_very_same_weights(found_by_two, folder_of_two, tmp_path):
    """The recipe of the documentation, with a worker that dies by kill -9 and is started again."""
    say(found_by_two, "the_recipe_leads_to_a_checkpoint")
    torchrun = "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"
    script = TESTS / "dynamic_killed.py"
    subprocess.run(
        [sys.executable, "-P", "-m", *torchrun, script, dynamic_ranks.RECIPE, "killed.pt"],
        env={**environment(), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        cwd=tmp_path,
        timeout=300,
        check=True,
    )
    assert (tmp_path / "killed").exists()
    paths = tmp_path / "killed.pt", folder_of_two / "whole.pt"
    killed, whole = (torch.load(path, weights_only=True) for path in paths)
    assert same(killed, whole)


def same(one, other):
    """Whether nested states hold the same, bit for bit."""
    if torch.is_tensor(one):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
