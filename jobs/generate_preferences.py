"""Preferences of users from their newest items: python -m jobs.generate_preferences extractive --sequences S --out PREFERENCES.

extractive   phrases of the items' own categories, without a language model; labelled extractive
llm          asked of an OpenAI-compatible endpoint; --dry-run prints prompts and an estimate and asks nothing. Answers are kept
             in OUT.answers.db the moment they are there: a run that was killed goes on, and nothing is paid twice. The key is
             read from the environment (RAYREC_LLM_KEY unless another variable is named) and never written.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jobs.asking import asked
from jobs.command_line import read_one_of
from rayrec.data.importing.own_tables import read_own_table
from rayrec.data.preferences.table import (
    PREFERENCES_FILE,
    PreferenceRecord,
    PreferenceRow,
    obeying,
    write_preferences,
)
from rayrec.data.sequences import SequenceData, read_sequences
from rayrec.errors import told
from rayrec.files import check_replaceable
from rayrec.text.chat_endpoint import EndpointConfig
from rayrec.text.extractive import BRAND, Phrases, extract
from rayrec.text.preferences import NEEDED, Names, parsed
from rayrec.text.prompts import read_prompt
from rayrec.typed_json import ConfigError


@dataclass(frozen=True)
class Moments:
    """For whom and when."""

    sequences: Path
    """Folder of jobs.import_sequences."""
    out: Path
    """Folder to write."""
    recent: int = 5
    """Newest items that are looked at."""
    first: int = 2
    """Earliest position of a history at which preferences are made."""
    newest: int | None = None
    """Of each user, at the last so many positions; None = at all."""
    users: int | None = None
    """The first so many users; None = all."""

    def __post_init__(self) -> None:
        for name in ("recent", "first", "newest", "users"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")

    def each(self, data: SequenceData) -> Iterator[tuple[int, int, list[int]]]:
        """(user row, position, newest items before it, newest last)."""
        interactions = data.interactions
        for user in range(min(interactions.num_users, self.users or interactions.num_users)):
            items = interactions.items[interactions.offsets[user] : interactions.offsets[user + 1]].tolist()
            start = self.first if self.newest is None else max(self.first, len(items) + 1 - self.newest)
            for position in range(start, len(items) + 1):
                yield user, position, items[max(0, position - self.recent) : position]


At = Annotated[Moments, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class Extractive:
    """Without a language model."""

    at: At
    """For which moments of which users."""
    things: str = "products"
    """What the items are ("films")."""
    seed: int = 0
    """Of the choice among phrases."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, not {self.seed}")


@dataclass(frozen=True)
class Llm:
    """By a language model."""

    at: At
    """For which moments of which users."""
    endpoint: EndpointConfig
    """Whom to ask, and how patiently."""
    prompt: str = "preferences.v1"
    """A file of rayrec/text/prompts."""
    reviews: Path | None = None
    """Table (Parquet or CSV) with columns user, item and review, which are shown with the items."""
    answers: int = 3
    """Most that are paid for one prompt, the refused ones included."""
    cache: Path | None = None
    """None = OUT.answers.db."""
    dry_run: bool = False
    """Print ``shown`` prompts and the estimate, ask nothing."""
    shown: int = 2
    """Prompts that a dry run prints."""


def run(command: Extractive | Llm) -> Path | None:
    """Make, write and print what is there; None after a dry run. Raises ConfigError, SourceError or ChatError that say what is
    wrong."""
    check_replaceable(command.at.out, PREFERENCES_FILE)
    data = read_sequences(command.at.sequences)
    return _extractive(command, data) if isinstance(command, Extractive) else _asked(command, data)


def names_of(data: SequenceData) -> Names:
    """All brands and titles of a catalogue."""
    labels = data.items.labels.to_pylist()
    brands = {label.removeprefix(BRAND) for own in labels for label in own if label.startswith(BRAND)}
    return Names(brands, data.items.titles.to_pylist())


def _extractive(command: Extractive, data: SequenceData) -> Path:
    labels, names = data.items.labels.to_pylist(), names_of(data)
    if not any(labels):
        raise ConfigError(
            f"{command.at.sequences}: its items have no labels; import the data again, from files with categories"
        )
    phrases, users = Phrases(labels, names, command.things), data.users.to_pylist()
    interactions, empty = data.interactions, 0

    def rows() -> Iterator[PreferenceRow]:
        nonlocal empty
        for user, position, recent in command.at.each(data):
            start = interactions.offsets[user]
            known = interactions.items[start : start + position].tolist()  # nothing of later items is told
            touched = frozenset(text for item in known for text in phrases.of_item[item - 1])
            found = extract(phrases, recent, touched, np.random.default_rng((command.seed, user, position)))
            empty += not found
            if found:
                yield PreferenceRow(users[user], position, found)

    kept, refused = obeying(rows(), names, NEEDED)
    if empty:
        refused["no phrase"] = empty
    maker = f"extractive, seed {command.seed}, newest {command.at.recent} items"
    folder = write_preferences(command.at.out, kept, PreferenceRecord("extractive", maker, 0, refused))
    print(f"{folder}: {len(kept):,} rows; left out: {refused or 'none'}")
    return folder


def _asked(command: Llm, data: SequenceData) -> Path | None:
    names, template = names_of(data), read_prompt(command.prompt)
    reviews = {} if command.reviews is None else _reviews(command.reviews, data)
    texts, item_names, users = (column.to_pylist() for column in (data.items.texts, data.items.names, data.users))
    moments = list(command.at.each(data))
    if not moments:
        raise ConfigError(f"{command.at.sequences}: no history has {command.at.first} items: nothing to ask")

    def line(user: int, item: int) -> str:
        said = reviews.get((users[user], item_names[item - 1]))
        return f"- {texts[item - 1] or item_names[item - 1]}" + (f" Review: {said}" if said else "")

    questions = [
        template.substitute(items="\n".join(line(user, item) for item in recent)) for user, _, recent in moments
    ]
    cache = command.cache or command.at.out.with_name(f"{command.at.out.name}.answers.db")
    replies = asked(
        questions, lambda question, answer: parsed(answer, names), command.endpoint, cache, what="preferences to make",
        answers=command.answers, shown=command.shown if command.dry_run else None,
    )  # fmt: skip
    if replies is None:
        return None
    rows, problems = [], dict[str, int]()
    for (user, position, _), reply in zip(moments, replies, strict=True):
        if reply.value is None:
            problems[reply.problem] = problems.get(reply.problem, 0) + 1
        else:
            rows.append(PreferenceRow(str(users[user]), position, reply.value))
    maker = f"{command.endpoint.model}, prompt {command.prompt}, newest {command.at.recent} items"
    folder = write_preferences(command.at.out, rows, PreferenceRecord("llm", maker, 0, problems))
    print(f"{folder}: {len(rows):,} rows, {len(moments) - len(rows):,} without an answer that obeys the rules")
    for problem, count in sorted(problems.items(), key=lambda pair: -pair[1])[:5]:
        print(f"{count:,} x {problem}")
    return folder


def _reviews(file: Path, data: SequenceData) -> dict[tuple[str, str], str]:
    """By user and item. Raises ConfigError when none is of the sequences; says how many are not."""
    table = read_own_table(file, ("user", "item", "review"))
    users, items = set(data.users.to_pylist()), set(data.items.names.to_pylist())
    rows = zip(table.names("user"), table.names("item"), table.texts("review"), strict=True)
    known = [((user, item), text) for user, item, text in rows if text and user in users and item in items]
    if not known:
        raise ConfigError(f"{file}: no review of a user and an item of the sequences")
    if left := len(table) - len(known):
        print(
            f"{file}: {left:,} of {len(table):,} rows left out: no text, or not of a user and an item of the sequences"
        )
    return dict(known)


def main() -> None:
    commands: dict[str, Callable[..., Extractive | Llm]] = {"extractive": Extractive, "llm": Llm}
    with told():
        run(read_one_of(commands, description=__doc__))


if __name__ == "__main__":
    main()
