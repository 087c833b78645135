"""The whole report: put together from its sections and written out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fullspectrum_ext._files import write_atomically
from fullspectrum_ext.experiments.report.accuracy import accuracy, support
from fullspectrum_ext.experiments.report.content import Block, Finding, Heading, Page, Section
from fullspectrum_ext.experiments.report.coordinates import coordinates
from fullspectrum_ext.experiments.report.cost import cost
from fullspectrum_ext.experiments.report.figures import percent
from fullspectrum_ext.experiments.report.html import to_html
from fullspectrum_ext.experiments.report.markdown import to_markdown
from fullspectrum_ext.experiments.report.prediction import prediction
from fullspectrum_ext.experiments.report.setup import setup
from fullspectrum_ext.experiments.report.significance import significance
from fullspectrum_ext.experiments.report.statistics import require_scipy
from fullspectrum_ext.experiments.report.study import Study
from fullspectrum_ext.experiments.report.svg import in_file
from fullspectrum_ext.experiments.report.topology import topology
from fullspectrum_ext.experiments.report.words import many

_FIGURES = "report-figures"


def make_page(study: Study) -> Page:
    """Say all that there is to say of some runs.

    Args:
        study: The runs; at least one.

    Returns:
        The page.

    Raises:
        MissingExtraError: If SciPy or matplotlib is not installed.
    """
    require_scipy()
    sections = [
        setup(study),
        accuracy(study),
        significance(study),
        prediction(study),
        coordinates(study),
        topology(study),
        support(study),
        cost(study),
    ]
    there = [section for section in sections if section is not None]
    return Page(study.title, _lead(study), [_in_short(there), *there])


def _in_short(sections: Sequence[Section]) -> Section:
    """What the sections found, by what runs it is about."""
    blocks = [block for section in sections for block in section.blocks]
    findings = [block for block in blocks if isinstance(block, Finding)]
    found: list[Block] = []
    for about in dict.fromkeys(finding.about for finding in findings):
        found += [Heading(about), *(finding for finding in findings if finding.about == about)]
    return Section("In short", found)


def _lead(study: Study) -> str:
    methods = dict.fromkeys(method for panel in study.panels for method in panel.methods)
    sparsities = sorted({sparsity for panel in study.panels for sparsity in panel.sparsities})
    seeds = {run.seed for run in study.runs}
    return (
        f"{many(len(study.runs), 'run')}: {', '.join(panel.name for panel in study.panels)}; "
        f"{many(len(methods), 'method')}, sparsities {', '.join(map(percent, sparsities))}, "
        f"{many(len(seeds), 'seed')}."
    )


def write_report(study: Study, folder: Path) -> Sequence[Path]:
    """Write ``report.html``, ``report.md`` and the Markdown's figures.

    Args:
        study: The runs; at least one.
        folder: Where to.

    Returns:
        The two files.

    Raises:
        MissingExtraError: If SciPy or matplotlib is not installed.
    """
    page = make_page(study)
    figures = {figure.name: in_file(figure.svg) for figure in page.figures()}
    for name, svg in figures.items():
        write_atomically(folder / _FIGURES / f"{name}.svg", svg.encode())
    texts: Mapping[str, str] = {
        "report.html": to_html(page),
        "report.md": to_markdown(page, _FIGURES),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    return [folder / name for name in texts]
