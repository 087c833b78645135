"""The section of the report on topologies that change."""

import re

import pytest
from fake_runs import fake_run

from fullspectrum_ext.experiments.report import Study, write_report
from fullspectrum_ext.experiments.report.content import Figure, Finding, Table
from fullspectrum_ext.experiments.report.degrees import degree_counts
from fullspectrum_ext.experiments.report.study import sort_runs
from fullspectrum_ext.experiments.report.topology import topology

LAYERS = tuple(f"layer{number}.weight" for number in range(8))


def changing_run(method="set", seed=0, sparsity=0.95, *, rise=0.0, before=2, layers=LAYERS[:1]):
    """A run of three updates and four measurements; its first coordinate rises so much."""
    run = fake_run(
        method, seed, sparsity,
        degrees_before={name: {"in": [[before, 6]], "out": [[before, 6]]} for name in layers},
        degrees_after={name: {"in": [[1, 3], [3, 3]], "out": [[2, 6]]} for name in layers},
    )  # fmt: skip
    vectors = [[rise * step, -float(step), 0.5, 0.1 * seed * step] for step in range(4)]
    run["history"] |= {
        "topology_steps": [10, 20, 30],
        "topology_overlap": [0.5, 0.6, 0.7 + seed / 100],
        "topology_churn": [0.4, 0.3, 0.2],
        "topology_explored": [0.1, 0.2, 0.25 + seed / 100],
        "coordinate_steps": [0, 10, 20, 30],
        "coordinate_norms": [1.0, 2.0, 3.0, 4.0],
        "coordinate_means": vectors,
        "coordinate_layers": {name: vectors for name in layers},
    }
    return run


def study_of(runs):
    return Study("Title", *sort_runs(runs))


def blocks_of(runs, kind):
    return [block for block in topology(study_of(runs)).blocks if isinstance(block, kind)]


def cells(table, *first):
    (row,) = (r for r in table.rows if [c.text for c in r[: len(first)]] == list(first))
    return {column.title: cell for column, cell in zip(table.columns, row, strict=True)}


def test_without_such_records_there_is_no_such_section():
    measured = fake_run("erk")
    measured["history"] |= {
        key: changing_run()["history"][key]
        for key in ("coordinate_steps", "coordinate_norms", "coordinate_means")
    }
    for runs in ([fake_run("set", steps=3)], [measured]):
        assert topology(study_of(runs)) is None


def test_updates_in_numbers():
    runs = [changing_run(seed=seed) for seed in (0, 1, 2)] + [fake_run("erk", seed=0)]

    table = blocks_of(runs, Table)[0]

    assert [row[0].text for row in table.rows] == ["set"]
    row = cells(table, "set")
    assert row["updates"].text == "3"
    assert row["mean churn"].text == "0.300 ± 0.000"
    assert row["mean overlap"].value == pytest.approx((0.5 + 0.6 + 0.71) / 3)
    assert (row["explored, %"].text, row["explored, %"].note) == ("26.00 ± 1.00", "")


def test_a_coordinate_rises_where_its_interval_is_above_zero():
    rises = [0.1, 0.11, 0.12]
    runs = [changing_run("set", seed, rise=rise) for seed, rise in enumerate(rises)]
    runs += [changing_run("rigl", seed, rise=rise) for seed, rise in enumerate([-1, 0, 1.5])]
    runs += [changing_run("granet", seed, rise=-9 - seed, before=4) for seed in range(3)]
    moved = [changing_run("dsr", seed, rise=5 + seed, layers=LAYERS[:2]) for seed in range(3)]
    for run in moved:  # as many in all, but not in each layer
        for name, degree in zip(LAYERS, (1, 3), strict=False):
            run["run"]["degrees_before"][name] = {"in": [[degree, 6]], "out": [[degree, 6]]}
    runs += moved

    found = blocks_of(runs, (Table, Finding))
    sentences = [block.text for block in found if isinstance(block, Finding)]
    table = [block for block in found if isinstance(block, Table)][1]

    # 3 * 0.11 with interval 0.33 ± 4.303 * 0.03 / sqrt(3)
    gap = cells(table, "set")["Ramanujan gap"]
    assert (gap.text, gap.note, gap.is_best) == ("+0.330", "[+0.255, +0.405]", True)
    assert not cells(table, "rigl")["Ramanujan gap"].is_best
    assert cells(table, "granet")["Ramanujan gap"].is_best
    # granet and dsr change the densities of layers: not counted. Of the second coordinate all
    # differences are equal.
    assert sentences[0] == (
        "Ramanujan gap over training: larger at the end in 1 (set at 95\N{NO-BREAK SPACE}%), "
        "smaller in 0 of 2 pairs of method and sparsity."
    )
    assert [words.split(" over")[0] for words in sentences] == ["Ramanujan gap", "λ_imsg"]


def test_degrees_of_seeds_are_added_up_by_hand():
    runs = sort_runs([changing_run(seed=seed) for seed in (0, 1)])[0][0].runs

    assert degree_counts(runs, LAYERS[0], "in", "degrees_before") == {2: 12}
    assert degree_counts(runs, LAYERS[0], "in", "degrees_after") == {1: 6, 3: 6}
    assert degree_counts(runs, "other.weight", "in", "degrees_after") == {}


def test_figures_and_sentences_are_on_the_page_and_beside_the_markdown(tmp_path):
    runs = [
        changing_run("set", seed, sparsity, rise=1 + seed)
        for seed in (0, 1, 2) for sparsity in (0.9, 0.995)
    ]  # fmt: skip
    for run in runs[::2]:  # at one sparsity
        del run["history"]["coordinate_layers"]

    write_report(study_of(runs), tmp_path)

    text = (tmp_path / "report.md").read_text()
    short, section = (re.split(rf"^## {title}$", text, flags=re.M)[1].split("\n## ")[0]
                      for title in ("In short", "Topology over time"))  # fmt: skip
    assert "Ramanujan gap over training: larger at the end in 0" in short
    assert re.findall(r"report-figures/(.*)\.svg", section) == [
        "updates-mlp-on-digits",
        "components-mlp-on-digits",
        "degrees-mlp-on-digits-90",
        "layers-mlp-on-digits-99-5",
        "degrees-mlp-on-digits-99-5",
    ]
    for figure in re.findall(r"report-figures/.*\.svg", section):
        assert (tmp_path / figure).is_file()
    for file in ("report.html", "report.md"):
        assert not re.search(r"\bnan\b", (tmp_path / file).read_text())


def test_there_are_never_too_many_layers_in_a_figure():
    runs = [changing_run(layers=LAYERS)]

    figures = {figure.name: figure for figure in blocks_of(runs, Figure)}

    layers, degrees = figures["layers-mlp-on-digits-95"], figures["degrees-mlp-on-digits-95"]
    assert "(6 of 8 layers, evenly spread)" in layers.caption
    assert set(re.findall(r"layer\d", layers.svg)) == {f"layer{n}" for n in (0, 1, 3, 4, 6, 7)}
    assert "(3 of 8 layers, evenly spread)" in degrees.caption
    assert set(re.findall(r"layer\d", degrees.svg)) == {"layer0", "layer4", "layer7"}


@pytest.mark.parametrize("lost", ["coordinate_means", "coordinate_layers", "topology_explored"])
def test_records_that_lack_something_are_shown_without_it(lost):
    runs = [changing_run(seed=seed) for seed in (0, 1)]
    for run in runs:
        del run["history"][lost]

    found = blocks_of([*runs, fake_run("erk")], Figure)

    names = {figure.name.split("-")[0] for figure in found}
    expected = {"updates", "components", "layers", "degrees"}
    if lost == "coordinate_means":
        expected -= {"components"}
    if lost == "coordinate_layers":
        expected -= {"layers"}
    assert names == expected


def test_one_run_alone_has_curves_and_no_interval():
    run = changing_run()
    for key in ("degrees_before", "degrees_after"):
        del run["run"][key]

    found = blocks_of([run], (Finding, Table, Figure))

    assert not any(isinstance(block, Finding) for block in found)
    tables = [block for block in found if isinstance(block, Table)]
    assert cells(tables[1], "set")["Spectral gap λ"].note == ""
    names = [block.name.split("-")[0] for block in found if isinstance(block, Figure)]
    assert names == ["updates", "components", "layers"]
