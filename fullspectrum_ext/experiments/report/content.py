"""What a report says, before it is HTML or Markdown: sections of text, tables and figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Column:
    """A table's column.

    Attributes:
        title: Its head.
        is_text: Whether words stand in it, on the left; numbers stand on the right.
    """

    title: str
    is_text: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What is shown.
        value: What a reader sorts by, where it is a number.
        note: A few words more, smaller.
        is_best: Whether it stands out.
    """

    text: str
    value: float | None = None
    note: str = ""
    is_best: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a caption that says what its figures are."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: Of its file, and of its place on the page; unique in a report.
        svg: The drawing, as :func:`fullspectrum_ext.experiments.report.svg.drawing` makes it.
        caption: What is to be seen.
    """

    name: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Finding:
    """A sentence that the numbers say; all of them stand together at the head of the page.

    Attributes:
        about: What runs it is about.
        text: The sentence.
    """

    about: str
    text: str


@dataclass(frozen=True)
class Heading:
    """The title of a part of a section."""

    text: str


Block = Table | Figure | Text | Finding | Heading


@dataclass(frozen=True)
class Section:
    """A part of the page with a title."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """The whole of it."""

    title: str
    lead: str
    sections: Sequence[Section] = field(default_factory=list)

    def figures(self) -> list[Figure]:
        """All figures, in the order of the page."""
        blocks = [block for section in self.sections for block in section.blocks]
        return [block for block in blocks if isinstance(block, Figure)]
