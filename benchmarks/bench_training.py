"""Time the whole training step of three networks: dense, dense with its mask, and ours.

A step is forward, loss, backward and the optimizer (SGD with momentum). "dense with mask" is the
usual way to train a sparse network: the weight is multiplied by its mask in every forward pass.
"ours" is `sparsify(model, masks, backend="auto", example=batch)`. The masks are random and of equal
sparsity in every layer but the last and a first convolution, which stay dense, as is usual.

All run in turns in one process. With --compiled, dense and ours are also measured under
`torch.compile`, which fuses batch normalisation, ReLU and residual additions for both alike. The
memory is counted: bytes of weights, gradients, Adam's state, masks and indices. Choose parts by
--models and --sparsities; --output then names their file.
"""

import argparse
import copy
import pathlib

import torch
from measure import RESULTS, time_interleaved, write_json
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fullspectrum_ext.experiments.models import build_model
from fullspectrum_ext.nn import SparseConv2d, SparseLinear, sparsify, training_bytes

SHAPE, CLASSES = (3, 32, 32), 10


class _Mask(nn.Module):
    """The mask product that people write."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.float())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def masks_of(model: nn.Module, sparsity: float) -> dict[str, Tensor]:
    """Draw masks for all weights but the last, and but a convolution of the image's channels."""
    weights = [name for name, parameter in model.named_parameters() if parameter.dim() > 1]
    first = int(model.get_parameter(weights[0]).dim() == 4)
    return {
        name: torch.rand(model.get_parameter(name).shape) >= sparsity for name in weights[first:-1]
    }


def forms(name: str, sparsity: float, x: Tensor) -> dict[str, nn.Module]:
    """Build the network in its three forms."""
    dense = build_model(name, SHAPE, CLASSES, seed=0)
    if sparsity == 0:
        return {"dense": dense}
    masks = masks_of(dense, sparsity)
    masked = copy.deepcopy(dense)
    for weight, mask in masks.items():
        layer = masked.get_submodule(weight.rpartition(".")[0])
        parametrize.register_parametrization(layer, "weight", _Mask(mask))
    ours = sparsify(copy.deepcopy(dense), masks, example=x)
    return {"dense": dense, "dense with mask": masked, "ours": ours}


class Step:
    """One training step of a model."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.model, self.x, self.y = model.train(), x, y
        self.optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def __call__(self) -> None:
        """Forward, backward, optimizer."""
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()


def main() -> None:
    """Parse the command line, measure, print a table and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["mlp-4096", "resnet20-64", "vgg16"])
    parser.add_argument(
        "--sparsities", nargs="+", type=float, default=[0, 0.8, 0.9, 0.95, 0.98, 0.99]
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="dense and ours compiled as well")
    parser.add_argument("--threads", type=int, help="of torch; its own default otherwise")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file, replaced")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    x, y = torch.randn(options.batch, *SHAPE), torch.randint(CLASSES, (options.batch,))

    rows = []
    print("      model sparsity            form  images/s  x dense  MB (of dense)  sparse layers")
    for name in options.models:
        for sparsity in options.sparsities:
            models = forms(name, sparsity, x)
            if options.compiled:
                compiled = {form: models[form] for form in ("dense", "ours") if form in models}
                for form, model in compiled.items():
                    models[f"{form}, compiled"] = torch.compile(copy.deepcopy(model))
            steps = {form: Step(model, x, y) for form, model in models.items()}
            times = time_interleaved(steps, options.repeats, warmup=1)
            for form, model in models.items():
                held, dense_held = training_bytes(model), training_bytes(models["dense"])
                sparse = sum(isinstance(m, (SparseLinear, SparseConv2d)) for m in model.modules())
                faster = times["dense"].median / times[form].median
                print(f"{name:>11} {sparsity:>8} {form:>15}", end=" ")
                print(f"{options.batch / times[form].median:9.1f} {faster:8.2f}", end=" ")
                print(f"{held / 1e6:9.1f} ({held / dense_held:4.0%}) {sparse:>12}", flush=True)
                rows.append({
                    "model": name,
                    "sparsity": sparsity,
                    "form": form,
                    "batch": options.batch,
                    "seconds": times[form]._asdict(),
                    "images_per_second": options.batch / times[form].median,
                    "training_bytes": held,
                    "sparse_layers": sparse,
                })
    output = options.output or RESULTS / "cpu" / "training.json"
    write_json(output, rows)
    print(f"written to {output}")


if __name__ == "__main__":
    main()
