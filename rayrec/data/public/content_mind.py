"""MIND (Wu et al. 2020): folders with news.tsv and behaviors.tsv, tab separated, without header or quoting.

news.tsv: id, category, subcategory, title, abstract, url, title entities, abstract entities. behaviors.tsv: impression id, user,
time, history (ids, oldest first, separated by blanks, may be empty), impressions (id-1 clicked, id-0 not). The archives are
MINDsmall_train.zip and MINDsmall_dev.zip; addresses in old readmes are dead. As in SPAR, 10 % of the users of the dev folder are
the validation split and the others the test.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rayrec.data.content import ContentError, ContentLog, ItemTexts, TextField
from rayrec.data.content.assembling import Assembly, share_of

FIELDS = (
    TextField("title", "News Title", 32), TextField("abstract", "News Abstract", 72), TextField("category", "News Category", 8)
)  # fmt: skip
_DOWNLOAD = "MIND comes as MINDsmall_train.zip and MINDsmall_dev.zip (or MINDlarge_*): unpack each into a folder"


@dataclass(frozen=True)
class Mind:
    """How the archives become impressions."""

    train: str = "MINDsmall_train"
    """Folder of the training part in ``source``."""
    dev: str = "MINDsmall_dev"
    """Folder of the other part in ``source``; its rows are for the test."""
    valid_share: float = 0.1
    """Of the dev users, for validation."""
    missing: Literal["drop", "keep"] = "drop"
    """Candidates and history items whose news is in no news.tsv: "drop" leaves them out, "keep" takes them as items
    without text; both count them."""
    max_history: int = 60
    """Newest clicks kept."""

    def __post_init__(self) -> None:
        if not 0 < self.valid_share < 1 or self.max_history < 1:
            raise ValueError("valid_share must lie in (0, 1), max_history be at least 1")

    def read(self, source: Path) -> ContentLog:
        """Raises ContentError that names file, line and field."""
        catalogue = _Catalogue(self.missing)
        for name in (self.train, self.dev):
            catalogue.read(source / name / "news.tsv")
        seen, empty = Assembly(self.max_history), 0
        for name in (self.train, self.dev):
            for user, clicks, candidates, labels in _behaviors(source / name / "behaviors.tsv", catalogue):
                split = "train" if name == self.train else "valid" if share_of(user) < self.valid_share else "test"
                history = seen.history(user, clicks[::-1])
                if len(candidates):
                    seen.impression(split, history, candidates, labels)
                else:
                    empty += 1
        notes = {
            "missing_candidates": catalogue.missing_candidates, "missing_clicks": catalogue.missing_clicks,
            "missing": self.missing, "impressions_left_empty": empty,
        }  # fmt: skip
        return seen.log(ItemTexts.of(list(catalogue.numbers), FIELDS, catalogue.texts), "MIND", notes)


@dataclass
class _Catalogue:
    missing: Literal["drop", "keep"]
    numbers: dict[str, int] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=lambda: {"title": [], "abstract": [], "category": []})
    with_text: int = 0  # news of the files; those behind are missing there
    missing_candidates: int = 0
    missing_clicks: int = 0

    def read(self, file: Path) -> None:
        for line, parts in _lines(file, 8):
            if not parts[0]:
                raise ContentError(f"{file}, line {line}: the news id is empty")
            if parts[0] not in self.numbers:
                self.add(parts[0], parts[3], parts[4], parts[1])
        self.with_text = len(self.numbers)

    def add(self, name: str, title: str, abstract: str, category: str) -> int:
        self.numbers[name] = len(self.numbers) + 1
        for column, text in (("title", title), ("abstract", abstract), ("category", category)):
            self.texts[column].append(text)
        return self.numbers[name]

    def number(self, name: str) -> int | None:
        """None: it is missing and dropped."""
        found = self.numbers.get(name)
        return self.add(name, "", "", "") if found is None and self.missing == "keep" else found


def _behaviors(file: Path, catalogue: _Catalogue) -> Iterator[tuple[str, list[int], list[int], list[int]]]:
    """(user, clicks oldest first, candidates, labels) of each line."""
    for line, (_, user, _, history, shown) in _lines(file, 5):
        clicks, candidates, labels = [], [], []
        for name in history.split():
            number = catalogue.number(name)
            catalogue.missing_clicks += number is None or number > catalogue.with_text
            if number is not None:
                clicks.append(number)
        for one in shown.split():
            name, dash, label = one.rpartition("-")
            if not dash or label not in ("0", "1"):
                raise ContentError(f"{file}, line {line}: impression {one!r}; expected a news id, then -0 or -1")
            number = catalogue.number(name)
            catalogue.missing_candidates += number is None or number > catalogue.with_text
            if number is not None:
                candidates.append(number)
                labels.append(int(label))
        yield user, clicks, candidates, labels


def _lines(file: Path, fields: int) -> Iterator[tuple[int, list[str]]]:
    """Numbered lines in their fields."""
    if not file.is_file():
        raise ContentError(f"{file}: no such file; {_DOWNLOAD}")
    with file.open(encoding="utf-8", newline="\n") as stream:
        try:
            for number, line in enumerate(stream, 1):
                parts = line.rstrip("\r\n").split("\t")
                if len(parts) != fields:
                    raise ContentError(f"{file}, line {number}: {len(parts)} fields, expected {fields}")
                yield number, parts
        except UnicodeDecodeError as error:
            raise ContentError(f"{file}: not UTF-8: {error}") from None
