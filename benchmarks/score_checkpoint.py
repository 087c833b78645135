"""Time and peak memory of ``fullspectrum score`` on a checkpoint like a language model's.

The checkpoint has the shapes of Llama: for each block four matrices ``hidden x hidden`` and three
of ``hidden`` and ``2.6875 hidden``, with an embedding and an output layer of 32,000 words, in
float16. Half of the blocks are 2:4 sparse, the others have half of their weights pruned at random.
It is written shard by shard, one a block, into a temporary folder, so that neither disk nor memory
needs more than the files. Each row is one run of the command in a process of its own.

    python benchmarks/score_checkpoint.py --billions 7 --hidden 4096     # as large as Llama 7B
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import safetensors.torch
import torch
from measure import RESULTS, write_json

WORDS = 32_000
# Peak memory comes from VmHWM: ru_maxrss of a new process begins at its parent's.
CHILD = """
import sys
import torch
import fullspectrum_ext as fs
from fullspectrum_ext.experiments.scoring import score_file
def memory(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
def advance(done, total):
    text = f"scored {done / 1e9:.2f} of {total / 1e9:.2f} billion weights"
    print(text, file=sys.stderr, flush=True)
start = memory("VmRSS")
score = score_file(sys.argv[1], advance=advance)
print(start, memory("VmHWM"), *sorted(set(score.patterns.values())))
"""


def block(hidden: int, prefix: str, *, groups: bool, seed: int) -> dict[str, torch.Tensor]:
    """Make the weights of one block."""
    wide = hidden * 43 // 16  # 11008 of 4096
    attention = {f"self_attn.{x}_proj": (hidden, hidden) for x in "qkvo"}
    mlp = {"gate_proj": (wide, hidden), "up_proj": (wide, hidden), "down_proj": (hidden, wide)}
    shapes = attention | {f"mlp.{name}": shape for name, shape in mlp.items()}
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"{prefix}.input_layernorm.weight": torch.ones(hidden, dtype=torch.float16)}
    for name, shape in shapes.items():
        weight = torch.randn(shape, generator=generator)
        if groups:
            parts = weight.view(-1, 4)
            parts.scatter_(1, parts.abs().topk(2, dim=1, largest=False).indices, 0)
        else:
            weight[torch.rand(shape, generator=generator) < 0.5] = 0
        tensors[f"{prefix}.{name}.weight"] = weight.half()
    return tensors


def write_checkpoint(folder: pathlib.Path, hidden: int, blocks: int) -> dict[str, int]:
    """Write the shards and their index; return the number of weights in all, and of the largest."""
    ends = {
        f"{name}.weight": torch.zeros(WORDS, hidden, dtype=torch.float16)
        for name in ("model.embed_tokens", "lm_head")
    }
    weight_map: dict[str, str] = {}
    total = 0
    for i in range(blocks + 1):
        prefix = f"model.layers.{i}"
        tensors = ends if i == blocks else block(hidden, prefix, groups=i % 2 == 0, seed=i)
        shard = f"model-{i + 1:05d}-of-{blocks + 1:05d}.safetensors"
        safetensors.torch.save_file(tensors, folder / shard)
        weight_map |= dict.fromkeys(tensors, shard)
        total += sum(tensor.numel() for tensor in tensors.values())
        print(f"wrote shard {i + 1} of {blocks + 1}", file=sys.stderr, flush=True)
    index = {"metadata": {"total_size": 2 * total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    layer = hidden * (hidden * 43 // 16)
    return {"weights": total, "largest_layer": layer, "largest_tensor": max(layer, WORDS * hidden)}


def main() -> None:
    """Write a checkpoint, score it, write down what that took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--billions", type=float, default=0.1, help="weights in the blocks")
    parser.add_argument("--hidden", type=int, default=2048, help="width of the model")
    parser.add_argument("--out", default=RESULTS / "cpu" / "score_checkpoint.json")
    arguments = parser.parse_args()
    hidden = arguments.hidden
    of_block = hidden * hidden * 4 + 3 * hidden * (hidden * 43 // 16)
    blocks = max(round(arguments.billions * 1e9 / of_block), 1)
    with tempfile.TemporaryDirectory() as folder:
        sizes = write_checkpoint(pathlib.Path(folder), hidden, blocks)
        start = time.perf_counter()
        command = [sys.executable, "-c", CHILD, folder]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        seconds = time.perf_counter() - start
        used_cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    idle, peak, *patterns = output.split()
    used = int(peak) - int(idle)
    row = {
        "hidden": hidden,
        "blocks": blocks,
        **sizes,
        "weights_scored": blocks * of_block,
        "patterns": patterns,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used_cpu.ru_utime + used_cpu.ru_stime, 1),
        "peak_bytes": int(peak),
        "bytes_before": int(idle),
        "peak_over_float32_of_largest_layer": round(used / (4 * sizes["largest_layer"]), 2),
        "peak_over_float32_of_largest_tensor": round(used / (4 * sizes["largest_tensor"]), 2),
    }
    write_json(arguments.out, [row])
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
