"""A report as Markdown, its figures files beside it."""

import re
from collections.abc import Iterable

from fullspectrum_ext.experiments.report.content import (
    Block,
    Cell,
    Figure,
    Finding,
    Heading,
    Page,
    Section,
    Table,
    Text,
)


def to_markdown(page: Page, figures: str) -> str:
    """Write a report as Markdown.

    Args:
        page: What it says.
        figures: Folder of its figures, seen from the file; each is ``NAME.svg`` there.

    Returns:
        The text.
    """
    parts = [f"# {_escaped(page.title)}", _escaped(page.lead)]
    for section in page.sections:
        parts += _section(section, figures)
    return "\n\n".join(parts) + "\n"


def _section(section: Section, figures: str) -> Iterable[str]:
    yield f"## {_escaped(section.title)}"
    for block in section.blocks:
        yield _block(block, figures)


def _block(block: Block, figures: str) -> str:
    match block:
        case Heading(text):
            return f"### {_escaped(text)}"
        case Text(text):
            return _escaped(text)
        case Finding(_, text):
            return f"- {_escaped(text)}"
        case Figure(name, _, caption):
            return f"![{_escaped(caption)}]({figures}/{name}.svg)\n\n*{_escaped(caption)}*"
        case Table():
            return _table(block)


def _table(table: Table) -> str:
    head = [_escaped(column.title) for column in table.columns]
    rule = ["---" if column.is_text else "---:" for column in table.columns]
    rows = [head, rule, *([_cell(cell) for cell in row] for row in table.rows)]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{lines}\n\n*{_escaped(table.caption)}*"


def _cell(cell: Cell) -> str:
    text = _escaped(cell.text)
    text = f"**{text}**" if cell.is_best else text
    if not cell.note:
        return text
    note = _escaped(cell.note)
    return f"{text} {note}" if cell.note.startswith("[") else f"{text} ({note})"


def _escaped(text: str) -> str:
    """Text that no sign of which is markup, in one line."""
    text = re.sub(r"([\\`*_|~$]|\](?=[(\[:]))", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
