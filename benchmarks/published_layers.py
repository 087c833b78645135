"""Compare random masks with the measurements published with the ICLR 2023 paper, layer by layer.

The published file holds, for torchvision's ResNet-34 (10 classes) and VGG-16 with batch norm,
what was measured on every layer of random and ERK masks at five densities, three seeds each. The
masks themselves were not published. Given a layer's number of edges, both methods draw a set of so
many weights uniformly. So this script draws masks of every shape with as many edges as the
published rows of that shape have, and says how many standard deviations of such masks lie between a
row and the mean that belongs to its number of edges. The numbers of edges themselves are compared
with those that `fs.prune` keeps exactly.

    python benchmarks/published_layers.py layers_cifar10.csv
"""

import argparse
import collections
import csv
import math
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import scipy.sparse
import torch
from measure import RESULTS, write_json

from fullspectrum_ext import full_spectrum
from fullspectrum_ext.pruning.densities import layer_counts

Shapes = dict[str, tuple[int, ...]]
METRICS = {  # column of the file: attribute of LayerSpectrum
    "sigma1": "sigma1",
    "sigma2": "sigma2",
    "delta_s": "ramanujan_gap_s",
    "delta_r": "ramanujan_gap",
    "imdb_s": "imdb_s",
    "imdb_r": "imdb",
    "narc": "narc",
}
RULES = {"Rand": "layer", "ERK": "erk"}
RESOLUTION = 1e-5  # of the published float32 values, relative to the largest term in them


def resnet34() -> Shapes:
    """List the weights of torchvision's ResNet-34 with 10 classes."""
    shapes: Shapes = {"conv1": (64, 3, 7, 7)}
    before = 64
    for stage, (channels, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(blocks):
            shapes[f"layer{stage}.{block}.conv1"] = (channels, before, 3, 3)
            shapes[f"layer{stage}.{block}.conv2"] = (channels, channels, 3, 3)
            if before != channels:
                shapes[f"layer{stage}.{block}.downsample.0"] = (channels, before, 1, 1)
            before = channels
    return {**shapes, "fc": (10, 512)}


def vgg16() -> Shapes:
    """List the weights of torchvision's VGG-16 with batch norm and 10 classes."""
    shapes: Shapes = {}
    place, before = 0, 3
    for stage in ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3):
        for channels in stage:
            shapes[f"features.{place}"] = (channels, before, 3, 3)
            before = channels
            place += 3
        place += 1  # the pooling
    classifier = {0: (4096, 25088), 3: (4096, 4096), 6: (10, 4096)}
    return shapes | {f"classifier.{place}": shape for place, shape in classifier.items()}


NETWORKS = {"resnet34": resnet34(), "vgg16": vgg16()}


def random_graph(
    shape: Sequence[int], edges: int, generator: np.random.Generator
) -> scipy.sparse.csr_array:
    """Draw a 0/1 matrix with so many ones, all sets of places equally likely."""
    rows, cols = shape[0], math.prod(shape[1:])
    places = generator.choice(rows * cols, edges, replace=False, shuffle=False)
    ones = np.ones(edges, dtype=bool)
    return scipy.sparse.csr_array((ones, (places // cols, places % cols)), shape=(rows, cols))


def read_published(path: pathlib.Path) -> Iterator[dict[str, object]]:
    """Read the rows of the file that are compared, with their number of edges."""
    with path.open() as file:
        for row in csv.DictReader(file):
            if row["method"] not in RULES:
                continue
            shape = NETWORKS[row["network"]][row["layer"]]
            edges = round(float(row["layer_density"]) * math.prod(shape))
            values = {metric: float(row[metric] or "nan") for metric in METRICS}
            key = (row["network"], row["method"], float(row["global_density"]))
            yield {"key": key, "layer": row["layer"], "edges": edges, "values": values}


def measure(
    shape: Sequence[int], edges: Sequence[int], generator: np.random.Generator
) -> np.ndarray:
    """Measure one random mask for each number of edges, ``[draws, metrics]``."""
    masks = {str(i): random_graph(shape, count, generator) for i, count in enumerate(edges)}
    layers = full_spectrum(masks, flavor="iclr").layers.values()
    return np.array([[getattr(layer, name) for name in METRICS.values()] for layer in layers])


def sigmas_apart(rows: Sequence[Mapping], draws: int, generator: np.random.Generator) -> np.ndarray:
    """Say how far published rows of one shape are from masks of our own, ``[rows, metrics]``.

    The draws have numbers of edges spread over those of the rows; a line through them gives the
    value to expect at the row's number, and what is left the standard deviation.
    """
    edges = np.array([row["edges"] for row in rows], dtype=float)
    drawn = np.quantile(edges, np.linspace(0, 1, draws)).round()
    found = measure(NETWORKS[rows[0]["key"][0]][rows[0]["layer"]], drawn.astype(int), generator)
    published = np.array([[row["values"][metric] for metric in METRICS] for row in rows])
    middle, spread = drawn.mean(), max(float(np.ptp(drawn)), 1.0)
    line = np.stack([np.ones(draws), (drawn - middle) / spread], axis=1)
    at_rows = np.stack([np.ones(len(rows)), (edges - middle) / spread], axis=1)
    inverse = np.linalg.pinv(line)
    coefficients = inverse @ found
    left = found - line @ coefficients
    variance = (left**2).sum(axis=0) / (draws - np.linalg.matrix_rank(line))
    leverage = np.square(at_rows @ inverse).sum(axis=1, keepdims=True)
    resolution = np.repeat(np.maximum(np.nan_to_num(published[:, :1]), 1), len(METRICS), axis=1)
    resolution[:, list(METRICS).index("narc")] = 1  # its terms are of order one
    resolution *= RESOLUTION
    return (published - at_rows @ coefficients) / np.sqrt(variance * (1 + leverage) + resolution**2)


def edges_apart(rows: Sequence[Mapping]) -> np.ndarray:
    """Say how far the published numbers of edges are from ours, in binomial deviations."""
    network, method, density = rows[0]["key"]
    shapes = NETWORKS[network]
    counts = layer_counts(shapes, density, RULES[method])
    apart = []
    for row in rows:
        size, ours = math.prod(shapes[row["layer"]]), counts[row["layer"]]
        spread = math.sqrt(ours * (1 - ours / size))
        difference = row["edges"] - ours
        apart.append(difference / spread if spread else float(difference))
    return np.array(apart)


def summary(key: tuple, metric: str, layers: Sequence[str], z: np.ndarray) -> dict[str, object]:
    """Sum up the distances of one metric; undefined ones are left out and counted."""
    defined = np.isfinite(z)
    named = [layer for layer, is_there in zip(layers, defined, strict=True) if is_there]
    z = z[defined]
    row = dict(zip(("network", "method", "density"), key, strict=True))
    row |= {"metric": metric, "rows": len(z), "undefined": int((~defined).sum())}
    if not len(z):
        return row
    worst = int(np.abs(z).argmax())
    return row | {
        "mean": float(z.mean()),
        "rms": float(np.sqrt(np.mean(z**2))),
        "beyond_2": float((np.abs(z) > 2).mean()),
        "beyond_3": float((np.abs(z) > 3).mean()),
        "largest": float(z[worst]),
        "largest_layer": named[worst],
    }


def markdown(
    table: Sequence[Mapping], draws: int, seconds: float, most: int, left_out: Sequence[str]
) -> str:
    """Write the page that stands beside the JSON file."""
    freedom = draws - 2
    lines = [
        "# Published layer measurements against ours",
        "",
        "Made by `benchmarks/published_layers.py`. The published values (ICLR 2023, csv_metric of "
        "ramanujan-on-pai) are those of random (`Rand`: Gaussian scores, global) and ERK masks, "
        "three seeds each; ours are in the ICLR flavour.",
        "",
        f"For every shape, density and method {draws} masks were drawn, their numbers of edges "
        "spread over those of the published rows of that shape. A row's distance is its value less "
        "the mean at its number of edges (by a line through the draws), in standard deviations "
        f"({freedom} degrees of freedom). Where both are samples of the same thing, the rms of the "
        f"distances is about {math.sqrt(freedom / (freedom - 2)):.2f}, their mean is near 0, and "
        "about 8 % lie beyond 2 and 1.7 % beyond 3. Rows of one shape share their draws, and so "
        "are not independent. `edges` compares the published numbers of edges with those that our "
        "methods keep, in binomial standard deviations.",
        "",
        "What cannot match: the masks themselves, which were not published; the numbers of edges "
        "(ERK masks were drawn weight by weight there, a global top-k makes them fluctuate in "
        "`Rand`; ours are exact); digits beyond the fifth (ARPACK in float32 there: "
        "of a complete layer's σ2, which is 0, it left up to 1e-5). SynFlow, whose masks follow "
        "from the seed, has a page of its own: `published_synflow.md`.",
        "",
        "Rows that are undefined in the file or in a draw are left out of the column `rows`: the "
        "file has no figure where a mean degree is below 3, and near 3 a gap is there or not by "
        "chance. Of very sparse layers σ2 is that of the few best connected units, with a longer "
        "tail than a normal variable: the largest distances are there. IMDB jumps with the classes "
        "of three taps or more that a draw happens to have.",
        "",
        f"Rows with more than {most} edges (`--most-edges`) are left out to keep the time short: "
        f"{'; '.join(left_out) or 'none'}.",
        "",
        f"Time: {seconds:.0f} s.",
        "",
        "| network | method | density | metric | rows | mean | rms | > 2 | > 3 | largest |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in table:
        cells = [row[name] for name in ("network", "method", "density", "metric", "rows")]
        if row["rows"]:
            cells += [f"{row['mean']:+.2f}", f"{row['rms']:.2f}"]
            cells += [f"{row['beyond_2']:.1%}", f"{row['beyond_3']:.1%}"]
            cells.append(f"{row['largest']:+.1f} ({row['largest_layer']})")
        else:
            cells += ["–"] * 5
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compare, print one line a network, method and density, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=pathlib.Path, help="the published file")
    parser.add_argument("--draws", type=int, default=10, help="masks for each shape")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--densities", type=float, nargs="*", help="only these")
    parser.add_argument("--most-edges", type=int, default=300_000, help="of a layer")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "cpu" / "published_layers")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    start = time.perf_counter()
    groups = collections.defaultdict(list)
    left_out: dict[str, set[float]] = collections.defaultdict(set)
    for row in read_published(arguments.csv):
        if arguments.densities and row["key"][2] not in arguments.densities:
            continue
        if row["edges"] > arguments.most_edges:
            left_out[f"{row['key'][0]} {row['layer']}"].add(row["key"][2])
            continue
        groups[row["key"]].append(row)
    table = []
    everything = collections.defaultdict(list)
    for key, rows in groups.items():
        generator = np.random.default_rng(arguments.seed)
        by_shape = collections.defaultdict(list)
        for row in rows:
            by_shape[NETWORKS[key[0]][row["layer"]]].append(row)
        rows = [row for same in by_shape.values() for row in same]
        parts = [sigmas_apart(same, arguments.draws, generator) for same in by_shape.values()]
        layers = [row["layer"] for row in rows]
        columns = {"edges": edges_apart(rows)}
        columns |= dict(zip(METRICS, np.concatenate(parts).T, strict=True))
        table += [summary(key, metric, layers, z) for metric, z in columns.items()]
        for metric, z in columns.items():
            everything[metric].append((layers, z))
        rms = {row["metric"]: round(row.get("rms", math.nan), 2) for row in table[-len(columns) :]}
        print(*key, rms, flush=True)
    for metric, parts in everything.items():
        layers = [layer for names, _ in parts for layer in names]
        z = np.concatenate([z for _, z in parts])
        table.append(summary(("all", "both", "all"), metric, layers, z))
    seconds = time.perf_counter() - start
    write_json(arguments.out.with_suffix(".json"), table)
    missing = [
        f"{layer} at {', '.join(map(str, sorted(at)))}" for layer, at in sorted(left_out.items())
    ]
    page = markdown(table, arguments.draws, seconds, arguments.most_edges, missing)
    arguments.out.with_suffix(".md").write_text(page)
    print(f"{seconds:.0f} s")


if __name__ == "__main__":
    main()
