"""The report page: one file that needs nothing beside it, shows text as text, and is replaced whole."""

import base64
import math
import struct
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from rayrec.reporting import page
from rayrec.reporting.page import Section, Table, number, text_table, write_page

HOSTILE = "<script>alert(\"x\")</script> & <img src=x onerror=y> '{{ 7 * 7 }}'"


class Elements(HTMLParser):
    """Start tags with their attributes, the text of each element by tag, and whether tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]][-1] += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def figure() -> Figure:
    drawn = Figure(figsize=(2, 1))
    drawn.subplots().plot([1, 2, 3])
    return drawn


def test_a_page_needs_nothing_beside_it(tmp_path: Path) -> None:
    written = write_page(tmp_path / "report", "A run", [Section("Curves", figures={"loss": figure(), "auc": figure()})])
    elements = Elements(written.read_text(encoding="utf-8"))
    assert not elements.attributes("script")
    assert not elements.attributes("link")
    references = [v for _, attributes in elements.tags for k, v in attributes.items() if k in ("src", "href", "data")]
    assert len(references) == 2
    for reference, name in zip(references, ("loss", "auc"), strict=True):
        assert reference is not None
        kind, _, encoded = reference.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(encoded, validate=True) == (written.parent / f"{name}.png").read_bytes()
    assert "url(" not in elements.texts["style"][0]
    assert "@import" not in elements.texts["style"][0]


def test_figures_are_png_files_too(tmp_path: Path) -> None:
    folder = write_page(tmp_path / "report", "A run", [Section("Curves", figures={"loss": figure()})]).parent
    assert sorted(path.name for path in folder.iterdir()) == ["loss.png", "report.html"]
    content = (folder / "loss.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert struct.unpack(">II", content[16:24]) == (220, 110)


def test_text_is_shown_as_text_wherever_it_stands(tmp_path: Path) -> None:
    table = Table(columns=(HOSTILE,), rows=((HOSTILE,),))
    figures = {"loss": figure()}
    written = write_page(tmp_path / "report", HOSTILE, [Section(HOSTILE, HOSTILE, table, figures, HOSTILE)])
    elements = Elements(written.read_text(encoding="utf-8"))
    assert not elements.attributes("script")
    assert [image["alt"] for image in elements.attributes("img")] == ["loss"]
    for tag in ("title", "h1", "h2", "p", "th", "td", "pre"):
        assert elements.texts[tag] == [HOSTILE]


def test_a_table_has_its_cells_in_order_and_one_row_marked(tmp_path: Path) -> None:
    table = Table(columns=("task", "AUC"), rows=(("click", "0.71"), ("buy", "0.64")), highlighted=1)
    elements = Elements(write_page(tmp_path / "report", "A run", [Section("Results", table=table)]).read_text())
    assert elements.texts["th"] == ["task", "AUC"]
    assert elements.texts["td"] == ["click", "0.71", "buy", "0.64"]
    assert [row.get("class") for row in elements.attributes("tr")] == [None, None, "marked"]


def test_a_section_shows_only_what_it_has(tmp_path: Path) -> None:
    elements = Elements(
        write_page(tmp_path / "report", "A run", [Section("Empty"), Section("More", "text")]).read_text()
    )
    assert elements.texts["h2"] == ["Empty", "More"]
    assert elements.texts["p"] == ["text"]
    assert not {"table", "img", "pre"} & elements.texts.keys()


def test_a_page_replaces_the_one_before_whole(tmp_path: Path) -> None:
    write_page(tmp_path / "report", "First", [Section("Curves", figures={"loss": figure()})])
    written = write_page(tmp_path / "report", "Second", [Section("Curves")])
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["report.html"]
    assert "<title>Second</title>" in written.read_text(encoding="utf-8")


def test_a_page_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_page(tmp_path / "report", "First", [Section("Curves", figures={"loss": figure()})])
    before = first.read_bytes()
    monkeypatch.setattr(page, "_DPI", -1)
    with pytest.raises(ValueError):
        write_page(tmp_path / "report", "Second", [Section("Curves", figures={"loss": figure()})])
    assert first.read_bytes() == before
    assert (tmp_path / "report" / "loss.png").is_file()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "n/a"),
        (math.nan, "n/a"),
        (0.123456789, "0.12346"),
        (-1.5, "-1.50000"),
        (1.0, "1.00000"),
        (12_345.0, "12,345"),
        (12_345, "12,345"),
        (12_345.5, "12345.50000"),
    ],
)
def test_numbers_are_shown_as_a_reader_expects(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_a_table_for_a_terminal_is_as_wide_as_its_cells_and_takes_them_as_they_are() -> None:
    long = "name=" + "x" * 200
    lines = text_table(Table(("test split", "auc"), (("[bold]", "0.5"), (long, "n/a")))).splitlines()
    assert [line.split() for line in (lines[0], *lines[2:])] == [
        ["test", "split", "auc"],
        ["[bold]", "0.5"],
        [long, "n/a"],
    ]
    assert len({len(line) for line in lines}) == 1
