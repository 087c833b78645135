"""What processes send each other: at every step, and for an update of the topology.

    torchrun --standalone --nproc-per-node 2 benchmarks/volume_of_ranks.py

As if every tensor went round in a ring; of one process, in MB.
"""

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fullspectrum_ext as fs
from fullspectrum_ext.experiments.models import build_model

MODELS = {"mlp-4096": ((1, 28, 28), 128), "resnet18": ((3, 32, 32), 8)}
METHODS = ("set", "rigl")


def main() -> None:
    """Print a row for each model and method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sparsity", type=float, default=0.95)
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    size = dist.get_world_size()
    if dist.get_rank() == 0:
        columns = ("batch each", "dense gradients", "gradients", "topology", "update")
        print(f"| {size} processes | {' | '.join(columns)} |")
        print("| --- | --- | --- | --- | --- | --- |")
    for name, (shape, batch) in MODELS.items():
        for method in METHODS:
            model = build_model(name, shape, 10, seed=0)
            dense = sum(parameter.nbytes for parameter in model.parameters())
            masks = fs.prune(model, "erk", sparsity=arguments.sparsity, seed=0)
            fs.sparsify(model, masks, backend="sparse")
            sparse = sum(parameter.nbytes for parameter in model.parameters())
            ddp = DistributedDataParallel(model)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            told: list[fs.dynamic.Update] = []
            dynamic = fs.DynamicSparsity(
                ddp, optimizer, method, steps=100, every=1, seed=0, on_update=told.append
            )
            kept = dict(model.named_buffers()).keys() & ddp.parameters_to_ignore
            topology = sum(model.get_buffer(buffer).nbytes for buffer in kept)
            images, classes = torch.randn(batch, *shape), torch.randint(10, (batch,))
            nn.functional.cross_entropy(ddp(images), classes).backward()
            optimizer.step()
            dynamic.step()
            around = 2 * (size - 1) / size
            sizes = (dense * around, sparse * around, topology, told[0].exchanged_bytes)
            if dist.get_rank() == 0:
                row = " | ".join(f"{number / 1e6:.2f}" for number in sizes)
                print(f"| {name}, `{method}` | {batch} | {row} |", flush=True)
            dynamic.remove()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
