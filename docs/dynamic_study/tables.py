"""The tables of the study: accuracy, and what became of each measure, with 95 % intervals.

    python docs/dynamic_study/tables.py > docs/dynamic_study/tables.md

All differences are paired: the runs of a seed share initial weights, first masks and the order of
the data. `controls.py` says what start, random, rewired and end are.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fullspectrum_ext.experiments.report.statistics import paired_test
from fullspectrum_ext.experiments.runs_file import read_runs

HERE = Path(__file__).parent
MEASURES = ("Ramanujan gap", "weighted gap", "IMDB", "IMSG")
PAIRS = (
    ("set", "erk"),
    ("rigl", "erk"),
    ("rigl", "set"),
    ("set:ramanujan", "set"),
    ("rigl:ramanujan", "rigl"),
    ("snip+set", "snip"),
    ("snip+rigl", "snip"),
)
STEPS = (("end", "start"), ("random", "start"), ("rewired", "random"), ("end", "rewired"))

Line = dict[str, Any]
Runs = dict[str, dict[int, Line]]  # method, seed


def lines(folder: Path) -> dict[tuple[str, float], tuple[Runs, Runs]]:
    """The runs and the controls of a sweep, by model and sparsity."""
    found: dict[tuple[str, float], tuple[Runs, Runs]] = {}
    for entry in read_runs(folder):
        config = entry["config"]
        place = found.setdefault((config["model"], config["sparsity"]), ({}, {}))
        place[0].setdefault(config["methods"][0], {})[config["seeds"][0]] = entry
    for text in (folder / "controls.jsonl").read_text().splitlines():
        line = json.loads(text)
        runs = found[line["model"], line["sparsity"]][1]
        runs.setdefault(line["method"], {})[line["seed"]] = line
    return found


def number(value: float) -> str:
    """Two digits with a sign."""
    return f"{value:+.2f}".replace("-", "−")


def said(differences: Sequence[float]) -> str:
    """A mean with its interval; bold where that leaves 0 out."""
    test = paired_test(differences)
    if math.isnan(test.low):  # of one seed, or all the same
        return number(test.mean)
    text = f"{number(test.mean)} [{number(test.low)}, {number(test.high)}]"
    return f"**{text}**" if test.low > 0 or test.high < 0 else text


def accuracy(entry: Line) -> float:
    """The test accuracy of a run, percent."""
    return 100 * float(entry["run"]["test_accuracy"])


def mean_of(kind: str, measure: int) -> Callable[[Line], float]:
    """A measure of a kind of topology, mean over the layers."""
    return lambda line: statistics.fmean(values[measure] for values in line[kind].values())


def of_layer(kind: str, measure: int, layer: str) -> Callable[[Line], float]:
    """The same of one layer."""
    return lambda line: float(line[kind][layer][measure])


def paired(
    one: dict[int, Line], other: dict[int, Line], figure: Callable[[Line], float]
) -> list[float]:
    """The differences over the seeds that both have."""
    return [figure(one[seed]) - figure(other[seed]) for seed in sorted(one) if seed in other]


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
    """Print a table."""
    print("| " + " | ".join(head) + " |")
    print("| " + " | ".join("---" for _ in head) + " |")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def accuracies(panels: dict[tuple[str, float], tuple[Runs, Runs]]) -> None:
    """Print mean and standard deviation of each method, then the paired differences."""
    places = [place for place in panels if place[1]]
    methods = list(dict.fromkeys(method for runs, _ in panels.values() for method in runs))

    def cell(place: tuple[str, float], method: str) -> str:
        at = (place[0], 0.0) if method == "dense" else place
        runs = panels[at][0].get(method, {})
        values = [accuracy(entry) for entry in runs.values()]
        return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}" if values else ""

    def difference(place: tuple[str, float], one: str, other: str) -> str:
        runs = panels[place][0]
        return said(paired(runs[one], runs[other], accuracy)) if {one, other} <= set(runs) else ""

    head = ["test accuracy, %", *(f"{model} {sparsity:.0%}" for model, sparsity in places)]
    table(head, ([m, *(cell(place, m) for place in places)] for m in methods))
    head[0] = "difference"
    known = [(one, other) for one, other in PAIRS if {one, other} <= set(methods)]
    table(head, ([f"{a} − {b}", *(difference(place, a, b) for place in places)] for a, b in known))


def changes(name: str, runs: Runs) -> None:
    """Print what became of each measure, and how much of it is due to what."""

    def row(measure: int, method: str) -> list[str]:
        own = runs[method].values()
        begin = statistics.fmean(map(mean_of("start", measure), own))
        cells = []
        for to, start in STEPS:
            ends, begins = mean_of(to, measure), mean_of(start, measure)
            cells.append(said([ends(line) - begins(line) for line in own]))
        return [MEASURES[measure], method, number(begin), *cells]

    print(f"{name}\n")
    head = ("measure", "method", "start", *(f"{to} − {start}" for to, start in STEPS))
    table(head, (row(measure, method) for measure in range(len(MEASURES)) for method in runs))


def summary(panels: dict[tuple[str, float], tuple[Runs, Runs]]) -> None:
    """Print in how many panels a measure rose and fell, by intervals that leave 0 out."""

    def row(measure: int, method: str) -> list[str]:
        cells = []
        for to, start in STEPS:
            ends, begins = mean_of(to, measure), mean_of(start, measure)
            tests = [
                paired_test([ends(line) - begins(line) for line in runs[method].values()])
                for _, runs in panels.values()
            ]
            rose, fell = sum(test.low > 0 for test in tests), sum(test.high < 0 for test in tests)
            cells.append(f"{rose} up, {fell} down" if rose or fell else "none")
        return [MEASURES[measure], method, *cells]

    methods = next(iter(panels.values()))[1]
    head = (f"of {len(panels)}", "method", *(f"{to} − {start}" for to, start in STEPS))
    table(head, (row(measure, method) for measure in range(len(MEASURES)) for method in methods))


def layers(name: str, runs: Runs) -> None:
    """Print the same of each layer, from the start to the end."""

    def rows() -> Iterator[list[str]]:
        for layer in next(iter(runs["erk"].values()))["start"]:
            for method, of_seed in runs.items():
                cells = []
                for measure in range(len(MEASURES)):
                    begins, ends = (
                        of_layer("start", measure, layer),
                        of_layer("end", measure, layer),
                    )
                    begin = statistics.fmean(map(begins, of_seed.values()))
                    change = said([ends(line) - begins(line) for line in of_seed.values()])
                    cells += [number(begin), change]
                yield [layer, method, *cells]

    print(f"{name}\n")
    titles = [title for measure in MEASURES for title in (measure, "end − start")]
    table(("layer", "method", *titles), rows())


def guidance(panels: dict[tuple[str, float], tuple[Runs, Runs]]) -> None:
    """Print what guidance changes of each measure at the end."""

    def rows() -> Iterator[list[str]]:
        for (model, sparsity), (_, runs) in panels.items():
            for guided, plain in (("set:ramanujan", "set"), ("rigl:ramanujan", "rigl")):
                if guided in runs:
                    cells = [
                        said(paired(runs[guided], runs[plain], mean_of("end", measure)))
                        for measure in range(len(MEASURES))
                    ]
                    yield [model, f"{sparsity:.0%}", f"{guided} − {plain}", *cells]

    table(("model", "sparsity", "difference at the end", *MEASURES), rows())


def courses(panels: dict[tuple[str, float], tuple[Runs, Runs]]) -> None:
    """Print the mean over seeds and layers at some moments."""

    def rows() -> Iterator[list[str]]:
        for (model, sparsity), (runs, _) in panels.items():
            for method in [name for name in runs if name != "dense"]:
                histories = [entry["history"] for entry in runs[method].values()]
                steps = histories[0]["coordinate_steps"]
                for measure in range(len(MEASURES)):
                    values = [
                        statistics.fmean(h["coordinate_means"][at][measure] for h in histories)
                        for at in moments(steps)
                    ]
                    yield [
                        model,
                        f"{sparsity:.0%}",
                        method,
                        MEASURES[measure],
                        *map(number, values),
                    ]

    steps = next(iter(next(iter(panels.values()))[0]["erk"].values()))["history"][
        "coordinate_steps"
    ]
    table(
        ("model", "sparsity", "method", "measure", *(f"step {steps[at]}" for at in moments(steps))),
        rows(),
    )


def degrees(panels: dict[tuple[str, float], tuple[Runs, Runs]]) -> None:
    """Print how uneven degrees are, and how many layers keep to the Ramanujan bound."""

    def rows() -> Iterator[list[str]]:
        for (model, sparsity), (runs, _) in panels.items():
            for method in [name for name in runs if name != "dense"]:
                found = [_degrees(entry) for entry in runs[method].values()]
                means = [statistics.fmean(figures) for figures in zip(*found, strict=True)]
                pairs = zip(means[::2], means[1::2], strict=True)
                cells = [f"{begin:.2f} → {end:.2f}" for begin, end in pairs]
                yield [model, f"{sparsity:.0%}", method, *cells]

    table(
        (
            "model",
            "sparsity",
            "method",
            "variation of degrees",
            "units without a weight",
            "layers of a gap > 0",
        ),
        rows(),
    )


def _degrees(entry: Line) -> list[float]:
    """Of a run, at the start and at the end each: the three figures of that table."""
    ends = entry["run"]["degrees_after"]
    begins = entry["run"].get("degrees_before", ends)
    figures = []
    for layers in (begins, ends):
        sides = [
            [degree for degree, count in side for _ in range(count)]
            for layer in layers.values()
            for side in layer.values()
        ]
        figures.append(statistics.fmean(statistics.pstdev(s) / statistics.fmean(s) for s in sides))
        every = [degree for side in sides for degree in side]
        figures.append(every.count(0) / len(every))
    gaps = entry["history"]["coordinate_layers"].values()
    kept = [statistics.fmean(gap[at][0] > 0 for gap in gaps) for at in (0, -1)]
    return [figures[0], figures[2], figures[1], figures[3], *kept]


def moments(steps: Sequence[int]) -> list[int]:
    """The places of the beginning, the first measurement, a quarter, a half, and so on."""
    last = len(steps) - 1
    return [0, 1, last // 4, last // 2, 3 * last // 4, last]


def study(title: str, folder: Path) -> None:
    """Print all tables of a sweep."""
    panels = lines(folder)
    pruned = {place: found for place, found in panels.items() if place[1]}
    print(
        f"# {title}\n\n## Accuracy\n\nMean ± standard deviation over seeds; differences with 95 % "
        "intervals, in bold where they leave 0 out.\n"
    )
    accuracies(panels)
    print("## Each measure from the start to the end, mean over the layers\n")
    summary(pruned)
    for (model, sparsity), (_, runs) in pruned.items():
        changes(f"**{model}, {sparsity:.0%}**", runs)
    print("## Guided and unguided, at the end\n")
    guidance(pruned)
    print("## Degrees, from the start to the end, mean over seeds\n")
    degrees(pruned)
    print("## Over time, mean over seeds and layers\n")
    courses(pruned)
    print("## Layer by layer\n")
    for (model, sparsity), (_, runs) in pruned.items():
        layers(f"**{model}, {sparsity:.0%}**", runs)


if __name__ == "__main__":
    study("20 epochs", HERE)
    study("100 epochs", HERE / "long")
