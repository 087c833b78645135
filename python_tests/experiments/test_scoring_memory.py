"""Scoring a checkpoint takes memory for its largest layer, not for the file."""

import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch

SHAPE = (1024, 2816)  # an eleventh of a block of a language model
SHARDS, LAYERS_A_SHARD = 5, 5
MIB = 2**20
# Beside the layer: code and data of torch that are first touched when something is computed (12 MiB
# measured), and what malloc keeps of one layer's memory for the next; 47 MiB in all when this was
# written. The file is larger than the bound, so that a scorer that kept layers would be caught.
CONSTANT = 64 * MIB
# VmHWM, not ru_maxrss: the latter begins at the parent's.
CHILD = """
import sys
from fullspectrum_ext.experiments.scoring import score_file
def memory(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
before = memory("VmRSS")
score = score_file(sys.argv[1])
print(before, memory("VmHWM"), len(score.patterns), *sorted(set(score.patterns.values())))
"""


def layer(kind, generator):
    weight = torch.randn(SHAPE, generator=generator)
    if kind == "2:4":
        groups = weight.view(-1, 4)
        groups.scatter_(1, groups.abs().topk(2, dim=1, largest=False).indices, 0)
    else:
        kept = 0.5 if kind == "half" else 0.005
        weight[torch.rand(SHAPE, generator=generator) >= kept] = 0
    return weight.half()


@pytest.fixture
def checkpoint(tmp_path):
    """137 MiB in shards: one layer 2:4, one half pruned, the others (fast ones) nearly empty."""
    generator = torch.Generator().manual_seed(0)
    weight_map = {}
    for shard in range(SHARDS):
        tensors = {}
        for i in range(LAYERS_A_SHARD):
            kind = {(1, 0): "2:4", (2, 3): "half"}.get((shard, i), "few")
            tensors[f"model.layers.{shard}.mlp.{i}.weight"] = layer(kind, generator)
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        safetensors.torch.save_file(tensors, tmp_path / file)
        weight_map |= dict.fromkeys(tensors, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def test_peak_memory_follows_the_largest_layer(checkpoint):
    child = subprocess.run(
        [sys.executable, "-P", "-c", CHILD, str(checkpoint)],
        capture_output=True,
        text=True,
        check=True,
    )
    before, peak, layers, *patterns = child.stdout.split()

    assert int(layers) == SHARDS * LAYERS_A_SHARD
    assert patterns == ["2:4", "unstructured"]
    float32 = 4 * SHAPE[0] * SHAPE[1]
    used = int(peak) - int(before)
    assert used < 3 * float32 + CONSTANT, f"{used / MIB:.0f} MiB for {float32 / MIB:.0f} a layer"
