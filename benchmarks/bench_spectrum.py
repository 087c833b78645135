"""Time the two leading singular values of 0/1 masks against NumPy and SciPy.

Layers as in a ResNet-34 for CIFAR, random masks. The rivals: `numpy.linalg.svd` of the dense
matrix, `scipy.sparse.linalg.svds` (ARPACK), and `scipy.sparse.linalg.eigsh` on the adjacency matrix
of the bipartite graph, which is what published code of the field does. The last rows of a density
are the whole network of 37 layers (Erdos-Renyi kernel densities), each in one call: its masks, its
absolute weights under the masks, all regular subgraphs of the masks, and the way from dense masks
to CSR form.

All candidates run in turns in one process, and their values are compared before they are timed.
With `--device cuda` ours run there and the rivals stay on the CPU, with what their users have.
"""

import argparse
import os
import pathlib
from collections.abc import Callable

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from measure import RESULTS, Quartiles, time_interleaved, write_json
from numpy.typing import NDArray

from fullspectrum_ext import ops
from fullspectrum_ext.ops import SingularValues
from fullspectrum_ext.spectral.graph import layer_graph

Values = NDArray[np.float64]
Calls = dict[str, Callable[[], Values]]
LAYERS = {"layer1": (64, 576), "layer2": (128, 1152), "layer3": (256, 2304), "layer4": (512, 4608)}


def resnet34() -> list[tuple[int, int, int]]:
    """List outputs, input channels and kernel area of the layers, classifier included."""
    layers = [(64, 3, 9)]
    before = 64
    for channels, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for _ in range(blocks):
            layers += [(channels, before, 9), (channels, channels, 9)]
            if before != channels:
                layers.append((channels, before, 1))
            before = channels
    return [*layers, (10, 512, 1)]


def erdos_renyi_kernel(layers: list[tuple[int, int, int]], density: float) -> Values:
    """Distribute a density over layers by (inputs + outputs + kernel sides) / size, at most one."""
    size = np.array([outputs * inputs * area for outputs, inputs, area in layers])
    sides = [outputs + inputs + 2 * area**0.5 for outputs, inputs, area in layers]
    raw = np.array(sides) / size
    dense = np.zeros(len(layers), dtype=bool)
    while True:
        scale = (density * size.sum() - size[dense].sum()) / (raw * size)[~dense].sum()
        over = dense | (scale * raw > 1)
        if (over == dense).all():
            return np.where(dense, 1.0, scale * raw)
        dense = over


def csr_tensors(
    mask: scipy.sparse.csr_array, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the fields of a SciPy matrix as int32 tensors."""
    return (
        torch.from_numpy(mask.indptr.astype(np.int32)).to(device),
        torch.from_numpy(mask.indices.astype(np.int32)).to(device),
    )


def random_mask(
    generator: np.random.Generator, shape: tuple[int, int], density: float
) -> scipy.sparse.csr_array:
    """Draw a mask."""
    return scipy.sparse.csr_array((generator.random(shape) < density).astype(float))


def adjacency_values(mask: scipy.sparse.csr_array) -> Values:
    """Take the first and third largest |eigenvalue| of the adjacency matrix."""
    adjacency = scipy.sparse.block_array([[None, mask.T], [mask, None]], format="csr")
    found = scipy.sparse.linalg.eigsh(adjacency, k=3, which="LM", return_eigenvectors=False)
    return np.sort(np.abs(found))[[2, 0]]


def arpack_values(mask: scipy.sparse.csr_array) -> Values:
    """Take the two leading singular values from svds."""
    found = scipy.sparse.linalg.svds(mask, k=2, return_singular_vectors=False, solver="arpack")
    return np.sort(found)[::-1]


def layer_calls(mask: scipy.sparse.csr_array, device: torch.device) -> Calls:
    """Build the candidates for one layer, after checking that they agree."""
    tensors = csr_tensors(mask, device)
    dense = mask.toarray()
    calls: Calls = {
        "fullspectrum": lambda: (
            ops.singular_values(*tensors, None, mask.shape).values.cpu().numpy()
        ),
        "numpy svd": lambda: np.linalg.svd(dense, compute_uv=False)[:2],
        "scipy svds": lambda: arpack_values(mask),
        "scipy eigsh, adjacency": lambda: adjacency_values(mask),
    }
    expected = calls["numpy svd"]()
    for name, call in calls.items():
        np.testing.assert_allclose(call(), expected, rtol=1e-6, err_msg=name)
    return calls


def agree(ours: SingularValues, theirs: Values, name: str) -> None:
    """Raise unless ours are theirs to 1e-8 of the value, and to 1e-12 of the largest one."""
    first = theirs[:, :1]
    error = np.abs(ours.values.cpu().numpy() - theirs)
    assert (error <= 1e-8 * theirs + 1e-12 * first).all(), f"{name}: off by {error.max()}"


def exact_values(matrices: list[scipy.sparse.csr_array]) -> Values:
    """Take the two leading singular values of each from LAPACK."""
    found = [np.linalg.svd(matrix.toarray(), compute_uv=False)[:2] for matrix in matrices]
    return np.stack([np.pad(values, (0, 2 - len(values))) for values in found])


def network_cases(
    generator: np.random.Generator, density: float, device: torch.device
) -> dict[str, Calls]:
    """Build the candidates for the whole network, after checking ours against LAPACK."""
    layers = resnet34()
    shapes = [(outputs, inputs * area) for outputs, inputs, area in layers]
    densities = erdos_renyi_kernel(layers, density)
    masks = [random_mask(generator, *pair) for pair in zip(shapes, densities, strict=True)]
    fields = [csr_tensors(mask, device) for mask in masks]
    crows, cols = [crow for crow, _ in fields], [col for _, col in fields]
    weights = [np.abs(generator.standard_normal(mask.nnz)) for mask in masks]
    weighted = [
        scipy.sparse.csr_array((values, mask.indices, mask.indptr), mask.shape)
        for values, mask in zip(weights, masks, strict=True)
    ]
    values = [torch.from_numpy(value.astype(np.float32)).to(device) for value in weights]
    bools = {
        f"layer {i}": torch.from_numpy(mask.toarray() != 0).to(device)
        for i, mask in enumerate(masks)
    }
    groups = ops.regular_subgraphs(crows, cols, shapes)

    def of_masks() -> SingularValues:
        return ops.singular_values(crows, cols, None, shapes)

    def of_weights() -> SingularValues:
        return ops.singular_values(crows, cols, values, shapes)

    def of_subgraphs() -> Values:
        found = ops.subgraph_singular_values(crows, cols, None, shapes, groups)
        return torch.cat([layer.values for layer in found]).cpu().numpy()

    def subgraphs_by_eigsh() -> Values:
        found = [np.zeros(2)]
        for mask, layer in zip(masks, groups, strict=True):
            by_column = mask.tocsc()
            for group in layer:
                part = by_column[:, group.taps.cpu().numpy()].tocsr()
                part = part[np.diff(part.indptr) > 0]
                if min(part.shape) > 3:  # eigsh wants more nodes than values
                    found.append(adjacency_values(part))
        return np.stack(found)

    agree(of_masks(), exact_values(masks), "masks")
    single = [matrix.astype(np.float32).astype(np.float64) for matrix in weighted]
    agree(of_weights(), exact_values(single), "weights")
    return {
        "network, masks": {
            "fullspectrum": lambda: of_masks().values.cpu().numpy(),
            "scipy eigsh, adjacency": lambda: np.stack([adjacency_values(m) for m in masks]),
        },
        "network, weights": {
            "fullspectrum": lambda: of_weights().values.cpu().numpy(),
            "scipy eigsh, adjacency": lambda: np.stack([adjacency_values(m) for m in weighted]),
        },
        "network, subgraphs": {
            "fullspectrum": of_subgraphs,
            "scipy eigsh, adjacency": subgraphs_by_eigsh,
        },
        "network, to CSR": {
            "fullspectrum": lambda: np.array([
                layer_graph(name, mask).edges for name, mask in bools.items()
            ]),
            "torch nonzero": lambda: np.array([len(mask.nonzero()) for mask in bools.values()]),
        },
    }


def show(name: str, density: float, times: dict[str, Quartiles]) -> None:
    """Print one row: ours in milliseconds, the others as multiples of it."""
    ours = times["fullspectrum"].median
    others = [f"{call} {time.median / ours:.1f}x" for call, time in times.items()][1:]
    print(f"{name:>18} {density:>6} {ours * 1e3:9.2f} ms  " + ", ".join(others), flush=True)


def main() -> None:
    """Parse the command line, measure, print a table and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--densities", nargs="+", type=float, default=[0.01, 0.05, 0.1])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=pathlib.Path, help="default: results/<device>/spectrum.json"
    )
    options = parser.parse_args()
    device = torch.device(options.device)
    output = options.output or RESULTS / device.type / "spectrum.json"
    torch.set_num_threads(options.threads)
    generator = np.random.default_rng(options.seed)

    rows = []
    for density in options.densities:
        cases = {
            name: layer_calls(random_mask(generator, LAYERS[name], density), device)
            for name in options.layers
        }
        cases |= network_cases(generator, density, device)
        for name, calls in cases.items():
            times = time_interleaved(calls, options.repeats, warmup=1, device=device)
            show(name, density, times)
            rows.append({
                "layer": name,
                "shape": LAYERS.get(name),
                "density": density,
                "load": os.getloadavg()[0],
                "seconds": {call: time._asdict() for call, time in times.items()},
            })
    write_json(output, rows)
    print(f"written to {output}")


if __name__ == "__main__":
    main()
