"""Dynamic sparse training in several processes, which may be killed at any moment.

    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    torchrun --standalone --nproc-per-node 2 --max-restarts 3 docs/recipes/ddp.py ddp.pt

The first line keeps processes that are started again from finding the addresses of the dead ones.
Where a process dies, torchrun starts all of them again, and they go on from the checkpoint to the
very weights that they would have come to. The same command resumes it another day.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fullspectrum_ext as fs

STEPS, BATCH, SAVE_EVERY = 400, 64, 20


def main(path: Path) -> None:
    """Train, or go on from a checkpoint."""
    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    digits = load_digits()
    inputs = torch.tensor(digits.data, dtype=torch.float32, device=device) / 16
    targets = torch.tensor(digits.target, device=device)

    torch.manual_seed(0)  # the same on every rank, and so is the seed of the masks
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10)).to(device)
    fs.sparsify(model, fs.prune(model, "erk", sparsity=0.95, seed=0))
    ddp = DistributedDataParallel(model, device_ids=[device.index] if on_gpu else None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    dynamic = fs.DynamicSparsity(ddp, optimizer, "rigl", steps=STEPS, every=20, seed=0)

    if path.exists():  # written by rank 0, read by all
        state = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        dynamic.load_state_dict(state["dynamic"])

    for step in range(dynamic.steps_done, STEPS):
        order = torch.Generator().manual_seed(step)  # each rank takes its part of one batch
        batch = torch.randint(len(targets), (BATCH,), generator=order)[rank::size].to(device)
        optimizer.zero_grad()
        nn.functional.cross_entropy(ddp(inputs[batch]), targets[batch]).backward()
        optimizer.step()
        dynamic.step()
        if rank == 0 and (step + 1) % SAVE_EVERY == 0:
            parts = {"model": model, "optimizer": optimizer, "dynamic": dynamic}
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save(state, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)  # at once: never half a checkpoint

    if rank == 0:
        correct = (model(inputs).argmax(1) == targets).float().mean()
        print(f"{correct:.4f} of the digits learnt with {dynamic.masks.nnz} weights")
        print(
            f"topology {dynamic.masks.digest()[:16]}, sent {dynamic.exchanged_bytes} bytes for it"
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
