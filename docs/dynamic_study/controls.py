"""The measures of each run's first and last topology, beside those of random ones like the last.

    python docs/dynamic_study/controls.py runs/dynamic_study > docs/dynamic_study/controls.jsonl

* start: the first topology, with the initial weights;
* random: as many edges a layer as the last topology, anywhere, with its weights in any order;
* rewired: the degrees of the last topology, of every output and every tap, otherwise at random
  (Strona et al., Nature Communications 2014), with its weights in any order;
* end: the last topology, with its weights.

Rewired less random is what uneven degrees do; end less rewired what is left, the wiring itself and
which weight is where. Random less start is what the growth of the weights does, where the first
topology was a random one too.
"""

import json
import random
import sys
from pathlib import Path

import torch
from torch import Tensor

import fullspectrum_ext as fs
from fullspectrum_ext.experiments import RunFolder, TrainConfig
from fullspectrum_ext.experiments.data import load_data
from fullspectrum_ext.experiments.models import build_model
from fullspectrum_ext.experiments.plan import run_path
from fullspectrum_ext.experiments.runs_file import read_runs

DRAWS = 3  # of each kind of random topology; their mean is written
TRADES = 5  # between pairs of rows, as a multiple of the number of rows


def rewired(mask: Tensor, draw: random.Random) -> Tensor:
    """Draw a matrix with the row and column sums of this one: rows trade what both do not have."""
    rows = [set(row.nonzero().view(-1).tolist()) for row in mask]
    for _ in range(TRADES * len(rows) if len(rows) > 1 else 0):
        one, other = draw.sample(range(len(rows)), 2)
        both, mine = rows[one] & rows[other], len(rows[one] - rows[other])
        goods = sorted(rows[one] ^ rows[other])
        draw.shuffle(goods)
        rows[one], rows[other] = both | set(goods[:mine]), both | set(goods[mine:])
    found = torch.zeros_like(mask)
    for number, row in enumerate(rows):
        found[number, sorted(row)] = True
    return found


def anywhere(mask: Tensor, draw: random.Random) -> Tensor:
    """Draw a matrix with as many edges."""
    found = torch.zeros_like(mask)
    found.view(-1)[draw.sample(range(mask.numel()), int(mask.sum()))] = True
    return found


def placed(weight: Tensor, mask: Tensor, to: Tensor, draw: random.Random) -> Tensor:
    """Put the weights of one topology in another one, in any order."""
    values = weight[mask].tolist()
    draw.shuffle(values)
    found = torch.zeros_like(weight)
    found[to] = torch.tensor(values, dtype=weight.dtype)
    return found


def measure(masks: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, list[float]]:
    """The four coordinates of each layer."""
    layers = fs.full_spectrum(fs.MaskSet(masks), weights).layers
    return {name: layer.vector.tolist() for name, layer in layers.items()}


def controls(config: TrainConfig, folder: RunFolder) -> dict[str, dict[str, list[float]]]:
    """The four coordinates of each layer, of each kind of topology."""
    (method,), (seed,) = config.methods, config.seeds
    data = load_data(config.data)
    network = build_model(config.model, data.shape, data.classes, seed)
    last = fs.MaskSet.load(folder.masks(method, seed))
    file = folder.masks(method, seed, 0)
    first = fs.MaskSet.load(file) if file.is_file() else last  # it never changed
    begin = {name: network.get_parameter(name).detach().flatten(1).clone() for name in last}
    fs.sparsify(network, last, backend=config.backend)
    checkpoint = folder.checkpoint(method, seed)
    network.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    fs.densify(network)
    end = {name: network.get_parameter(name).detach().flatten(1) for name in last}
    masks = {name: mask.flatten(1) for name, mask in last.items()}

    found = {"start": measure({name: mask.flatten(1) for name, mask in first.items()}, begin)}
    draw = random.Random(seed)
    for kind, drawn in (("random", anywhere), ("rewired", rewired)):
        measured = []
        for _ in range(DRAWS):
            other = {name: drawn(mask, draw) for name, mask in masks.items()}
            weights = {name: placed(end[name], masks[name], other[name], draw) for name in masks}
            measured.append(measure(other, weights))
        found[kind] = {
            name: [sum(values) / DRAWS for values in zip(*(m[name] for m in measured), strict=True)]
            for name in masks
        }
    return found | {"end": measure(masks, end)}


def main() -> None:
    """Write a line for each run of a sweep."""
    sweep = Path(sys.argv[1])
    torch.set_num_threads(1)
    for entry in read_runs(sweep):
        config = TrainConfig(**entry["config"])
        if config.methods == ("dense",):
            continue
        found = controls(config, RunFolder(sweep / "runs" / run_path(config)))
        line = {"model": config.model, "sparsity": config.sparsity, "method": config.methods[0]}
        line |= {"seed": config.seeds[0]}
        for kind, layers in found.items():
            line[kind] = {
                name: [float(f"{value:.6g}") for value in values] for name, values in layers.items()
            }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
