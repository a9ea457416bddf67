"""Tables that fit. At any width each row shows what it is about, and no figure is ever cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

LEAST_WORDS = 18  # columns that words are given at least before a row becomes lines of its own


@dataclass(frozen=True)
class Column:
    """One column: its cells, and when it may be left out.

    rank    0 stays at any width; of the others the lower come first
    words   prose, which may be folded; figures and names are never
    """

    name: str
    cells: Sequence[str | Text]
    rank: int = 0
    right: bool = False
    words: bool = False
    style: str = ""

    @property
    def width(self) -> int:
        """Its width without folding."""
        return max(map(len, (self.name, *self.cells)))

    @property
    def least(self) -> int:
        return min(self.width, LEAST_WORDS) if self.words else self.width


class Fitted:
    """A table with the columns that the console has room for. Without room for the required ones, it prints lines.

    note    stands below the table if a shown cell has its first character, a mark
    """

    def __init__(self, title: str, columns: Sequence[Column], *, wide: bool = False, note: str = "") -> None:
        self.title, self.columns, self.wide, self.note = title, columns, wide, note

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.title, style="italic")  # a table's own title is folded to the table's width
        kept = self.fitting(options.max_width)
        if kept:
            yield self._table(kept)
        else:
            yield from self._lines()
        shown = kept or self._required()
        if self.note and any(self.note[0] in str(cell) for column in shown for cell in column.cells):
            yield Text(self.note)

    def _required(self) -> list[Column]:
        return [column for column in self.columns if column.rank == 0]

    def fitting(self, width: int) -> list[Column]:
        """The columns that fit, in their order. None if not even the required ones fit."""
        if self.wide:
            return list(self.columns)
        kept: list[int] = []
        taken = -GAP
        for place, column in sorted(enumerate(self.columns), key=lambda item: (item[1].rank, item[0])):
            wanted = taken + GAP + column.least
            if wanted <= width:
                kept.append(place)
                taken = wanted
            elif column.rank == 0:
                return []
        return [self.columns[index] for index in sorted(kept)]

    def _table(self, columns: Sequence[Column]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for column in columns:
            table.add_column(
                column.name,
                justify="right" if column.right else "left",
                no_wrap=not column.words,
                overflow="fold",
                style=column.style,
            )
        for cells in zip(*(column.cells for column in columns), strict=True):
            table.add_row(*cells)
        return table

    def _lines(self) -> Iterator[Text]:
        """A row as a line that wraps where it must."""
        must = self._required()
        for cells in zip(*(column.cells for column in must), strict=True):
            first, *rest = zip(must, cells, strict=True)
            line = Text.assemble(first[1])
            for column, cell in rest:
                if len(cell):
                    line = Text.assemble(line, f", {column.name}{':' * column.words} ", cell)
            yield line


GAP = 2  # a space of padding and the box's own between two columns
