"""Several processes: dynamic_ranks.py holds what they find out, in one run of them."""

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

TESTS = pathlib.Path(dynamic_ranks.__file__).parent


def environment():
    return {
        **os.environ,
        "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{TESTS}".lstrip(":"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where four processes, and then two of them, have written what they found."""
    folder = tmp_path_factory.mktemp("ranks")
    with (folder / "log").open("w") as log:
        subprocess.run(
            [sys.executable, "-P", TESTS / "dynamic_ranks.py", folder],
            env=environment(),
            cwd=folder,
            stdout=log,
            stderr=log,
            timeout=300,
            check=False,
        )
    return folder


def say(folder, size, name):
    for rank in range(size):
        path = folder / f"{size}-{rank}.json"
        assert path.exists(), (folder / "log").read_text()[-3000:]
        results = json.loads(path.read_text())
        assert name in results, f"rank {rank} did not come to it"
        assert results[name] is None, f"rank {rank}: {results[name]}"


@pytest.mark.parametrize("name", dynamic_ranks.CHECKS[2])
def test_two_processes(folder, name):
    say(folder, 2, name)


@pytest.mark.parametrize("name", dynamic_ranks.CHECKS[4])
def test_four_processes(folder, name):
    say(folder, 4, name)


def test_a_killed_process_leads_to_the_very_same_weights(folder, tmp_path):
    """The recipe of the documentation, with a worker that dies by kill -9 and is started again."""
    say(folder, 2, "the_recipe_leads_to_a_checkpoint")
    torchrun = "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"
    script = TESTS / "dynamic_killed.py", folder / "digits.npz", dynamic_ranks.RECIPE
    subprocess.run(
        [sys.executable, "-P", "-m", *torchrun, *script, "killed.pt"],
        env={**environment(), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        cwd=tmp_path,
        timeout=300,
        check=True,
    )
    assert (tmp_path / "killed").exists()
    paths = tmp_path / "killed.pt", folder / "whole.pt"
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
