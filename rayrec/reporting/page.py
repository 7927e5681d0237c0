"""A report page: sections of text, tables and figures in one HTML file that needs nothing beside it; figures also as PNG."""

import base64
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table as Drawn
from rich.text import Text

from rayrec.files import whole_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110
_PAGE = "report.html"


@dataclass(frozen=True)
class Table:
    """Cells as they are shown. ``highlighted``: index of a row to mark."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    highlighted: int | None = None


@dataclass(frozen=True)
class Section:
    """A heading with, in this order, a paragraph, a table, figures by file name (without ".png") and preformatted text."""

    heading: str
    text: str = ""
    table: Table | None = None
    figures: Mapping[str, "Figure"] = field(default_factory=dict)
    code: str = ""


def write_page(folder: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write ``<folder>/report.html`` and ``<folder>/<figure>.png``, whole or not at all; returns the page's path.

    Raises UserError for a folder that holds no earlier report.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rayrec.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    with whole_folder(folder, _PAGE) as partial:
        for section in sections:
            for name, figure in section.figures.items():
                figure.savefig(partial / f"{name}.png", dpi=_DPI)
        page = environment.get_template("page.html").render(
            title=title,
            sections=sections,
            image=lambda name: base64.b64encode((partial / f"{name}.png").read_bytes()).decode(),
        )
        (partial / _PAGE).write_text(page, encoding="utf-8")
    return folder / _PAGE


def blank_figure(width: float, height: float) -> "Figure":
    """To draw on; inches."""
    from matplotlib.figure import (
        Figure,  # a second of imports, which jobs that draw nothing and their workers do without
    )

    return Figure(figsize=(width, height), layout="constrained")


def number(value: float | None, digits: int = 5) -> str:
    """A metric's cell; "n/a" where it is undefined."""
    if value is None or value != value:
        return "n/a"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 10 else f"{value:.{digits}f}"


def text_table(table: Table) -> str:
    """The table for a terminal, as wide as it is; the highlighted row is bold there."""
    drawn = Drawn(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for place, column in enumerate(table.columns):
        drawn.add_column(Text(column), justify="right" if place else "left", no_wrap=True)
    for place, row in enumerate(table.rows):
        drawn.add_row(*map(Text, row), style="bold" if place == table.highlighted else None)
    wide = Console(width=1_000_000)
    console = Console(width=wide.measure(drawn).maximum, force_terminal=sys.stdout.isatty())
    with console.capture() as written:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in written.get().splitlines())


def metrics_table(summary: Mapping[str, Mapping[str, float | None]]) -> Table:
    """One row for each thing that is judged (a task, "text"), one column a metric."""
    columns = tuple(dict.fromkeys(name for metrics in summary.values() for name in metrics))
    rows = tuple((name, *(number(metrics.get(column)) for column in columns)) for name, metrics in summary.items())
    return Table(("", *columns), rows)
