"""A report as one HTML page that needs nothing but itself."""

from collections.abc import Iterable
from html import escape

from fullspectrum_ext.experiments.report.content import (
    Block,
    Cell,
    Column,
    Figure,
    Finding,
    Heading,
    Page,
    Section,
    Table,
    Text,
)
from fullspectrum_ext.experiments.report.page_style import SCRIPT, STYLE
from fullspectrum_ext.experiments.report.svg import on_page


def to_html(page: Page) -> str:
    """Write a report as HTML with its style, script and figures inside.

    Args:
        page: What it says.

    Returns:
        The page.
    """
    anchors = {section.title: f"section-{n}" for n, section in enumerate(page.sections, 1)}
    links = "".join(
        f'<li><a href="#{anchor}">{escape(title)}</a></li>' for title, anchor in anchors.items()
    )
    sections = "\n".join(_section(section, anchors[section.title]) for section in page.sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(page.title)}</title>
<style>
{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(page.title)}</h1>
<p class="lead">{escape(page.lead)}</p>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{sections}
</main>
<script>
{SCRIPT}</script>
</body>
</html>
"""


def _section(section: Section, anchor: str) -> str:
    blocks = "\n".join(map(_block, section.blocks))
    return f'<section id="{anchor}">\n<h2>{escape(section.title)}</h2>\n{blocks}\n</section>'


def _block(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h3>{escape(text)}</h3>"
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Finding(_, text):
            return f'<p class="finding">{escape(text)}</p>'
        case Figure():
            return _figure(block)
        case Table():
            return _table(block)


def _figure(figure: Figure) -> str:
    caption = escape(figure.caption)
    svg = on_page(figure.svg).replace("<svg ", f'<svg role="img" aria-label="{caption}" ', 1)
    return (
        f'<figure>\n<div class="drawing">{svg}</div>\n<figcaption>{caption}</figcaption>\n</figure>'
    )


def _table(table: Table) -> str:
    head = "".join(map(_head, table.columns))
    rows = "\n".join(f"<tr>{''.join(_cells(row, table.columns))}</tr>" for row in table.rows)
    return (
        f'<figure class="table">\n<div class="scroll" tabindex="0"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>\n"
        f"<figcaption>{escape(table.caption)}</figcaption>\n</figure>"
    )


def _head(column: Column) -> str:
    return (
        f'<th scope="col"{_side(column)}><button type="button">{escape(column.title)}</button></th>'
    )


def _cells(row: Iterable[Cell], columns: Iterable[Column]) -> Iterable[str]:
    for cell, column in zip(row, columns, strict=True):
        value = "" if cell.value is None else f' data-value="{cell.value!r}"'
        text = escape(cell.text)
        text = f"<strong>{text}</strong>" if cell.is_best else text
        note = f"<small>{escape(cell.note)}</small>" if cell.note else ""
        yield f"<td{_side(column)}{value}>{text}{note}</td>"


def _side(column: Column) -> str:
    return ' class="text"' if column.is_text else ""
