import json
import math
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fake_runs import fake_run, fake_sweep
from typer.testing import CliRunner

from fullspectrum_ext.cli import app
from fullspectrum_ext.experiments.extras import MissingExtraError
from fullspectrum_ext.experiments.plan import Published
from fullspectrum_ext.experiments.report import Study, read_study, write_report
from fullspectrum_ext.experiments.report.content import Finding, Page, Table
from fullspectrum_ext.experiments.report.names import has_larger_norm, rivals
from fullspectrum_ext.experiments.report.page import make_page
from fullspectrum_ext.experiments.report.prediction import verdict
from fullspectrum_ext.experiments.report.sample import DENSITY, LAYERS, sample
from fullspectrum_ext.experiments.report.significance import compare
from fullspectrum_ext.experiments.report.study import sort_runs
from fullspectrum_ext.experiments.runs_file import write_runs

METHODS = ["dense", "snip", "pags:snip", "pags:snip:drift", "snip:warm", "imp", "<script>$1_*|"]


def study_of(runs, **more):
    panels, repeated = sort_runs(runs)
    return Study("Title", panels, repeated, **more)


def page_of(runs, **more):
    return make_page(study_of(runs, **more))


def tables(page: Page, section: str):
    (found,) = (s for s in page.sections if s.title == section)
    return [block for block in found.blocks if isinstance(block, Table)]


def findings(page: Page):
    return [block.text for block in page.sections[0].blocks if isinstance(block, Finding)]


def row_of(table, *first):
    (row,) = (r for r in table.rows if [c.text for c in r[: len(first)]] == list(first))
    titles = [column.title for column in table.columns]
    return dict(zip(titles, row, strict=True))


@pytest.fixture(scope="module")
def runs_file(tmp_path_factory):
    runs = fake_sweep(METHODS, [0.9, 0.98], 3, models=("mlp",), steps=5)
    runs += [
        fake_run("snip", s, 0.9, 0.8, model="mlp", data="teacher-mlp", support_recovered=0.25 * s)
        for s in range(3)
    ]
    path = tmp_path_factory.mktemp("runs") / "runs.jsonl"
    write_runs(path, runs)
    return path


@pytest.fixture(scope="module")
def written(runs_file):
    result = CliRunner().invoke(app, ["report", str(runs_file)])

    assert result.exit_code == 0, result.output
    assert "report.html" in result.output
    return runs_file.parent


# ---- the files -----------------------------------------------------------------------------------


class _Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.ids, self.references = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in {"meta"}:
            self.open.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.references += [v for k, v in attrs if k in {"src", "href", "srcset", "xlink:href"}]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_refers_to_nothing_but_itself(written):
    text = (written / "report.html").read_text()
    elements = _Elements()
    elements.feed(text)

    assert elements.open == []
    assert len(set(elements.ids)) == len(elements.ids)
    assert elements.references
    assert all(r.removeprefix("#") in elements.ids for r in elements.references)
    assert all(r.startswith("#") for r in re.findall(r"url\(([^)]*)\)", text))
    assert "http" not in text
    assert "@import" not in text


def test_names_are_text_and_no_markup(written):
    text = (written / "report.html").read_text()

    assert text.count("<script>") == 1
    assert "&lt;script&gt;$1_*|" in text
    assert r"| &lt;script&gt;\$1\_\*\| |" in (written / "report.md").read_text()


def test_the_figures_of_the_markdown_are_there_and_whole(written):
    links = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", (written / "report.md").read_text())

    assert {link.split("/")[-1] for link in links} == {
        f"{kind}-{panel}.svg"
        for panel in ("mlp-on-digits", "mlp-on-teacher-mlp")
        for kind in ("accuracy", "seeds", "norms", "prediction")
    } | {"trajectories-mlp-on-digits.svg"}
    for link in links:
        root = ElementTree.parse(written / link).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        words = "".join(root.itertext())
        assert "snip" in words or "90" in words


def test_the_same_runs_give_the_same_bytes(tmp_path):
    write_runs(tmp_path / "runs.jsonl", fake_sweep(["snip", "pags:snip"], [0.9], 2, steps=3))
    write_report(read_study([tmp_path]), tmp_path / "one")
    command = [sys.executable, "-P", "-c", "from fullspectrum_ext.cli import main; main()"]
    subprocess.run(
        [*command, "report", tmp_path / "runs.jsonl", "--out", tmp_path / "two"],
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
        timeout=100,
    )

    one, two = (
        {file.name: file.read_bytes() for file in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    )
    assert len(one) == 7
    assert one == two


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_without_a_network_shows_it_and_sorts_its_tables(written, tmp_path):
    page = tmp_path / "page.html"
    click = """<script>
      const title = "90\\u00a0%";
      const buttons = [...document.querySelectorAll("th button")];
      const head = buttons.find(button => button.textContent === title);
      const rows = head.closest("table").tBodies[0].rows;
      const values = () => [...rows].map(row => Number(row.cells[1].dataset.value));
      head.click();
      const down = values();
      head.click();
      document.title = JSON.stringify([down, values()]);
    </script>"""
    page.write_text((written / "report.html").read_text().replace("</body>", click + "</body>"))

    shown = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
         "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip

    assert "CONSOLE" not in shown.stderr
    title = re.search(r"<title>(.*?)</title>", shown.stdout)[1]
    down, up = json.loads(title)
    assert len(down) == len(METHODS)
    assert down == sorted(down, reverse=True)
    assert up == sorted(up)
    assert down != up


# ---- what is read --------------------------------------------------------------------------------


def test_a_sweeps_folder_says_what_is_missing_and_what_failed(tmp_path):
    (tmp_path / "plan.toml").write_text(
        'title = "Four runs"\nmodels = ["mlp"]\nsparsities = [0.95]\nmethods = ["snip", "erk"]\n'
        "seeds = [0, 1]\n[[published]]\nmodel = 'mlp'\nmethod = 'snip'\nsparsity = 0.95\n"
        "accuracy = 88.5\nspread = 0.5\nsource = 'A paper'\n"
    )
    write_runs(tmp_path / "runs.jsonl", [fake_run("snip", 0, 0.95, 0.9)])
    folder = tmp_path / "runs" / "digits-mlp-0.95"
    (folder / "erk-1").mkdir(parents=True)
    (folder / "erk-1" / "error.txt").write_text("Traceback\n  line\nValueError: no <luck>\n")

    study = read_study([tmp_path])
    page = make_page(study)

    assert page.title == "Four runs"
    assert study.absent == ["digits-mlp-0.95/erk-0", "digits-mlp-0.95/snip-1"]
    assert [(f.name, f.error) for f in study.failures] == [
        ("digits-mlp-0.95/erk-1", "ValueError: no <luck>")
    ]
    row = row_of(tables(page, "Accuracy against sparsity")[-1], "mlp on digits", "snip")
    assert row["published"].text == "88.5 ± 0.5"
    assert row["difference"].text == "+1.50"
    assert row["source"].text == "A paper"


def test_without_runs_it_says_so(tmp_path):
    (tmp_path / "runs.jsonl").write_text("")

    result = CliRunner().invoke(app, ["report", str(tmp_path)])

    assert result.exit_code == 2
    assert "no run is finished yet" in result.output
    assert CliRunner().invoke(app, ["report", str(tmp_path / "none")]).exit_code == 2


def test_without_matplotlib_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(MissingExtraError, match=r"matplotlib.*fullspectrum-ext\[report\]"):
        page_of([fake_run()])


def test_runs_with_other_settings_are_other_comparisons():
    short = {"epochs": 5}
    runs = [fake_run(seed=0), fake_run(seed=0, settings=short), fake_run("erk", settings=short)]

    panels, repeated = sort_runs([*runs, fake_run(seed=0, accuracy=0.1)])

    assert [(p.name, len(p.runs)) for p in panels] == [
        ("mlp on digits, epochs 40", 1),
        ("mlp on digits, epochs 5", 2),
    ]
    assert repeated == 1
    assert panels[0].runs[0].accuracy == 90


def test_a_run_that_belongs_nowhere_is_refused():
    run = fake_run()
    del run["config"]["sparsity"]

    with pytest.raises(ValueError, match="run 2: expected sparsity in its config"):
        sort_runs([fake_run(), run])


def test_files_of_two_comparisons_never_have_one_name():
    panels, _ = sort_runs([fake_run(model="a:b"), fake_run(model="a.b")])

    assert [panel.key for panel in panels] == ["a-b-on-digits", "a-b-on-digits-2"]


def test_all_environments_are_named():
    runs = [fake_run(seed=s, environment={"git_commit": c}) for s, c in enumerate("aab")]

    (table,) = tables(page_of(runs), "What was run")[1:]

    assert [(row[0].text, row[-1].text) for row in table.rows] == [("a", "2"), ("b", "1")]


# ---- what it says --------------------------------------------------------------------------------


def test_what_belongs_together_by_name():
    everything = ["pags:snip", "pags:snip:drift", "snip", "snip:warm", "imp", "pags:erk", "erk"]

    assert rivals("pags:snip", everything) == ["snip"]
    assert rivals("pags", everything) == ["snip"]
    assert rivals("pags:snip:drift", everything) == ["snip"]
    assert rivals("pags:snip:drift:warm", everything) == ["snip:warm", "imp"]
    assert rivals("pags:erk:warm", everything) == ["erk", "imp"]
    assert rivals("snip:warm", everything) == ["imp"]
    assert rivals("imp:lr", everything) == []
    assert rivals("pags:grasp", everything) == []
    assert [m for m in everything if has_larger_norm(m)] == ["pags:snip", "pags:erk"]


def test_accuracy_is_mean_and_deviation_and_says_where_seeds_are_missing():
    runs = [fake_run("snip", seed, 0.95, a) for seed, a in enumerate([0.9, 0.92])]
    runs += [fake_run("erk", seed, 0.95, a) for seed, a in enumerate([0.8, 0.8])]
    runs += [fake_run("random", 0, 0.95, 0.5), fake_run("random", 1, 0.95, math.nan)]

    page = page_of(runs)

    (table,) = tables(page, "Accuracy against sparsity")
    cells = {row[0].text: row[1] for row in table.rows}
    assert (cells["snip"].text, cells["snip"].note) == ("91.00 ± 1.41", "")
    assert cells["snip"].is_best
    assert (cells["erk"].text, cells["erk"].is_best) == ("80.00 ± 0.00", False)
    assert (cells["random"].text, cells["random"].note) == ("50.00", "n = 1")
    texts = [getattr(block, "text", "") for block in page.sections[1].blocks]
    assert "Without an accuracy that is a number, and left out below: 1 run." in texts


def test_dense_stands_beside_every_sparsity():
    runs = [fake_run("snip", 0, sparsity) for sparsity in (0.9, 0.95)]
    runs += [fake_run("dense", seed, 0.0, a) for seed, a in enumerate([0.97, 0.99])]

    (table,) = tables(page_of(runs), "Accuracy against sparsity")

    assert [column.title for column in table.columns] == ["method", "90\xa0%", "95\xa0%"]
    assert [cell.text for cell in table.rows[1]] == ["dense", "98.00 ± 1.41", "98.00 ± 1.41"]


def test_differences_are_paired_by_seed():
    base = [fake_run("snip", s, 0.95, a, norm_before=1.0) for s, a in enumerate([0.8, 0.7, 0.6])]
    pags = [
        fake_run("pags:snip", seed, 0.95, accuracy, norm_before=norm)
        for seed, accuracy, norm in [(2, 0.61, 1.5), (1, 0.72, 0.9), (0, 0.83, 1.0), (7, 0.1, 0.1)]
    ]

    page = page_of(pags + base)

    (found,) = compare(study_of(pags + base).panels[0])
    assert (found.test.n, found.lower_norms) == (3, 1)
    row = row_of(tables(page, "Differences, paired over seeds")[0], "pags:snip", "snip")
    # Differences 1, 2, 3 points: mean 2, interval 2 ± 4.303 / sqrt(3).
    assert (row["difference, %"].text, row["difference, %"].note) == ("+2.00", "[−0.48, +4.48]")
    assert row["norm lower in"].text == "1 of 3"
    assert row["p (t)"].text == row["p (t, Holm)"].text == "0.074"
    assert "the norm of PAGS is at least its base's in 2 of 3 pairs" in " ".join(findings(page))


def test_one_seed_in_common_is_no_test():
    runs = [fake_run("snip", 0), fake_run("pags:snip", 0), fake_run("pags:snip", 1)]

    row = row_of(tables(page_of(runs), "Differences, paired over seeds")[0], "pags:snip")

    assert row["difference, %"].note == "fewer than 2 seeds in common"
    assert row["p (t)"].text == "–"


def test_a_correlation_through_density_alone_is_called_that():
    runs = []
    for level, sparsity in enumerate((0.5, 0.8, 0.9, 0.95)):
        for number in range(8):
            for seed in range(4):
                # Both fall with density; what is left of them is orthogonal.
                x = (-1) ** number * (1 + seed) / 10
                y = (-1) ** (number // 2) * (1 + seed) / 100
                distance, accuracy = 4 - level + x, 0.9 - 0.1 * level + y
                method = f"m{number}"
                runs.append(fake_run(method, seed, sparsity, accuracy, anchor_distance=distance))

    found = sample(study_of(runs).panels[0].runs, "anchor_distance")

    assert found.correlate().coefficient > 0.9
    assert abs(found.correlate(DENSITY).coefficient) < 0.2
    words = verdict("Anchor distance", found)
    assert "no evidence that it says anything of accuracy" in words
    assert words.startswith("Anchor distance: r = +0.9")
    assert words.endswith("; what is seen without the control is the density's.")


def test_a_correlation_through_the_layers_densities_is_called_that():
    # The first layer's density decides both; what is left of them is orthogonal.
    runs = []
    for number in range(24):
        for seed in range(2):
            first = 0.02 * (number + 1)
            x, y = (-1) ** number * 0.01, (-1) ** (number // 2) * 0.001
            layers = {"a": first, "b": 0.6 - first}
            accuracy = 0.5 + 0.05 * math.log(first) + y
            figures = {"anchor_distance": math.log(first) + x, "layer_densities": layers}
            runs.append(fake_run(f"m{number}", seed, 0.9, accuracy + seed / 1000, **figures))

    found = sample(study_of(runs).panels[0].runs, "anchor_distance")

    assert found.correlate(DENSITY).low > 0.95
    assert abs(found.correlate(LAYERS).coefficient) < 0.15
    assert "at equal layer densities" in verdict("Anchor distance", found)
    assert "no evidence" in verdict("Anchor distance", found)


def test_a_correlation_at_equal_density_is_called_that():
    runs = [
        fake_run(f"m{number}", seed, sparsity, 0.5 + 0.01 * number + 0.003 * seed,
                 anchor_distance=2 - 0.1 * number + 0.01 * (seed - 1) ** 2)
        for sparsity in (0.9, 0.95) for number in range(10) for seed in range(3)
    ]  # fmt: skip

    found = sample(study_of(runs).panels[0].runs, "anchor_distance")

    words = verdict("Anchor distance", found)
    assert words.endswith("larger ones go with lower accuracy, strongly.")
    assert "over 60 runs" in words
    assert "over the 20 means over seeds" in words


def test_many_seeds_of_few_methods_are_no_evidence():
    runs = [
        fake_run(f"m{number}", seed, 0.9, 0.5 + 0.1 * number + 0.001 * seed,
                 anchor_distance=number + 0.001 * (seed % 7))
        for number in range(2) for seed in range(30)
    ]  # fmt: skip

    found = sample(study_of(runs).panels[0].runs, "anchor_distance")

    assert found.correlate().low > 0.9
    assert "too few methods and sparsities" in verdict("Anchor distance", found)


@pytest.mark.parametrize(
    "runs",
    [
        [fake_run()],
        [fake_run("dense", seed, 0.0) for seed in range(2)],
        [fake_run("snip", seed, accuracy=0.1) for seed in range(5)],
        [fake_run("snip", seed, accuracy=math.nan) for seed in range(2)],
        [fake_run("snip", norm_before=None, norm_after=None, anchor_distance=None)],
    ],
    ids=["one", "dense", "constant", "nan", "no coordinate"],
)
def test_whatever_the_runs_are_there_is_a_page(runs, tmp_path):
    published = [Published(model="vgg16", method="snip", sparsity=0.9, accuracy=93.0, source="P")]

    write_report(study_of(runs, published=published), tmp_path)

    assert {path.name for path in Path(tmp_path).iterdir()} == {
        "report.html", "report.md", "report-figures",
    }  # fmt: skip
    for name in ("report.html", "report.md"):
        assert not re.search(r"\bnan\b", (tmp_path / name).read_text())


def test_the_layers_densities_are_accounted_for_where_they_are_known(written):
    text = (written / "report.md").read_text()

    known, unknown = re.findall(r"\| measure \| runs \| n \|.*", text)
    assert "Pearson at equal layer densities" in known
    assert "layer" not in unknown


def test_the_support_of_a_teacher_is_shown(written):
    text = (written / "report.md").read_text()

    assert "## Recovery of a known teacher" in text
    assert "| snip | **25.00 ± 25.00** |" in text


def test_time_is_a_median_with_quartiles():
    runs = [fake_run("snip", s, training_seconds=t) for s, t in enumerate([1, 2, 3, 4, 100])]
    runs[0]["environment"]["threads"] = 2

    page = page_of(runs)

    row = row_of(tables(page, "Time and memory")[0], "snip")
    assert (row["training, s"].text, row["training, s"].note) == ("3", "2 to 4")
    assert "2 kinds of machines" in page.sections[-1].blocks[0].text
