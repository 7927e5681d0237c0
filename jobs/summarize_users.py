"""Texts of users for SPAR and EmbSum: python -m jobs.summarize_users extractive --content CONTENT --version phrases.

extractive   phrases that tell a history from the catalogue (class-based TF-IDF), in a template; labelled extractive
llm          asked of an OpenAI-compatible endpoint by a prompt of rayrec/text/prompts (interest.v1 for SPAR, summary.v1 for
             EmbSum); --dry-run prints prompts and an estimate. Answers are kept in CONTENT.VERSION.answers.db the moment they
             are there: a killed run goes on, and nothing is paid twice. The key is read from the environment, never written.
table        texts that are there already: a Parquet or CSV file with columns user and text, and who wrote them

Each run adds a version to the log, labelled by who wrote it; tokenize again to use it. For training write --before impressions: a
text of each history that impressions are shown with, from its contents alone. Texts that know what impressions ask for are
refused when they are to be read with them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import tyro

from jobs.asking import asked
from jobs.command_line import taken
from rayrec.data.content import Before, ContentLog, UserTexts, add_user_texts, read_content
from rayrec.data.importing.own_tables import read_own_table
from rayrec.errors import told
from rayrec.text.chat_endpoint import EndpointConfig
from rayrec.text.prompts import read_prompt
from rayrec.text.user_interests import checked_interest, extractive_interests
from rayrec.typed_json import ConfigError


@dataclass(frozen=True)
class Target:
    """What is read of which users, and what the texts are called."""

    content: Path
    "Log of jobs.import_content."
    version: str
    "Name of the texts."
    before: Literal["impressions", "valid", "test"] | None = None
    """"impressions": a text of each history as it stands in the log, for impressions of every part and for serving. "valid",
    "test": a text of each user from the history that it had at its first impression of this part; it cannot be read with
    earlier ones. None = from its current history, with all that is known of it: for serving alone. A table says with it what
    its writer knew, None = not known; with "impressions" it has a column history, rows of histories.parquet from 0, not user."""
    newest: int = 30
    "Contents of a user's history that are read."
    words: int = 100
    "Of each field of a content."
    users: int | None = None
    "The first so many; None = all."

    def __post_init__(self) -> None:
        for name in ("newest", "words", "users"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")


Into = Annotated[Target, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class Extractive:
    """Without a language model."""

    into: Into
    """What is read of whom, and the texts' name."""
    sentences: int = 3
    """Phrases of a text."""


@dataclass(frozen=True)
class Llm:
    """By a language model."""

    into: Into
    """What is read of whom, and the texts' name."""
    endpoint: EndpointConfig
    """Whom to ask, and how patiently."""
    prompt: str = "interest.v1"
    """Of rayrec/text/prompts."""
    answers: int = 3
    """Most that are paid for one user, the refused ones included."""
    cache: Path | None = None
    """None = CONTENT.VERSION.answers.db."""
    dry_run: bool = False
    """Print ``shown`` prompts and the estimate, ask nothing."""
    shown: int = 2
    """Prompts that a dry run prints."""


@dataclass(frozen=True)
class Table:
    """Texts from elsewhere."""

    into: Into
    """What is read of whom, and the texts' name."""
    file: Path
    """The table: Parquet or CSV."""
    generator: str
    """Who wrote them."""
    notes: str = ""
    """From what."""


def run(command: Extractive | Llm | Table) -> Path | None:
    """Write a version and print what is there; None after a dry run. Raises ConfigError, SourceError or ChatError that say what
    is wrong."""
    log = read_content(command.into.content)
    if command.into.version in log.user_texts:
        raise ConfigError(f"{command.into.content}: user texts of version {command.into.version!r} are there already")
    if isinstance(command, Table):
        return _add(command.into, _from_table(command, log))
    into, contents = command.into, _contents(command.into, log)
    histories = _read(into, log)
    before: Before = into.before or "end"
    about = UserTexts(
        "", pa.nulls(0), f"written from the newest {into.newest} contents of each {_WHEN[before]}", before
    )
    if isinstance(command, Extractive):
        texts = extractive_interests([" ".join(parts) for parts in contents], histories, command.sentences)
        return _add(into, replace(about, generator="extractive", texts=pa.array(texts, pa.string())))
    return _asked(command, contents, histories, about)


_WHEN: Mapping[Before, str] = {
    "impressions": "history alone", "valid": "user's history before its valid impressions",
    "test": "user's history before its test impressions", "end": "user's current history",
}  # fmt: skip


def _contents(into: Target, log: ContentLog) -> list[list[str]]:
    """Of each item its non-empty fields cut to ``words``."""
    columns = [log.items.texts[one.name].to_pylist() for one in log.items.fields]
    cut = ((" ".join(text.split()[: into.words]) for text in texts) for texts in zip(*columns, strict=True))
    return [[part for part in parts if part] for parts in cut]


def _read(into: Target, log: ContentLog) -> list[list[int]]:
    """Of each text that is to be written the rows of contents, newest first, that it is written from."""
    if into.before == "impressions":
        rows, owners = np.arange(len(log.histories)), log.owners
    else:
        rows = log.current if into.before is None else log.histories_before(into.before)
        owners = np.arange(len(log.users))
    rows = np.where(owners < (into.users or len(log.users)), rows, -1)
    return [(log.histories[row][: into.newest] - 1).tolist() if row >= 0 else [] for row in rows.tolist()]


def _asked(command: Llm, contents: list[list[str]], histories: list[list[int]], about: UserTexts) -> Path | None:
    template = read_prompt(command.prompt)
    told = ["; ".join(parts) for parts in contents]
    rows = [row for row, history in enumerate(histories) if any(told[item] for item in history)]
    questions = [
        template.substitute(items="\n".join(f"- {told[item]}" for item in histories[row] if told[item])) for row in rows
    ]
    cache = command.cache or command.into.content.with_name(
        f"{command.into.content.name}.{command.into.version}.answers.db"
    )
    replies = asked(
        questions, lambda _, answer: checked_interest(answer), command.endpoint, cache,
        what=f"{_of(about)} with contents", answers=command.answers, shown=command.shown if command.dry_run else None,
    )  # fmt: skip
    if replies is None:
        return None
    texts = [""] * len(histories)
    for row, reply in zip(rows, replies, strict=True):
        texts[row] = reply.value or ""
    without = sum(reply.value is None for reply in replies)
    if without:
        print(f"{without:,} without an answer that obeys the rules; the first: "
              f"{next(reply.problem for reply in replies if reply.value is None)}")  # fmt: skip
    generator = f"an LLM ({command.endpoint.model}), prompt {command.prompt}"
    return _add(command.into, replace(about, generator=generator, texts=pa.array(texts, pa.string())))


def _from_table(command: Table, log: ContentLog) -> UserTexts:
    before = command.into.before
    key = "history" if before == "impressions" else "user"
    table = read_own_table(command.file, (key, "text"))
    named: list[Any] = table.counts(key) if key == "history" else table.names(key)
    given = dict(zip(named, table.texts("text"), strict=True))
    texts = [given.pop(one, "") for one in (range(len(log.histories)) if key == "history" else log.users.to_pylist())]
    if not any(texts):
        raise ConfigError(f"{command.file}: no text of a {key} of {command.into.content}")
    about = UserTexts(command.generator, pa.array(texts, pa.string()), command.notes, before)
    if given:
        print(f"{len(given):,} texts of {_of(about)} that are not in the log are left out")
    return about


def _of(texts: UserTexts) -> str:
    return "histories" if texts.before == "impressions" else "users"


def _add(into: Target, texts: UserTexts) -> Path:
    place = add_user_texts(into.content, into.version, texts)
    written = [text for text in texts.texts.to_pylist() if text]
    words = sum(len(text.split()) for text in written) / max(len(written), 1)
    print(
        f"{place}: {len(written):,} of {len(texts.texts):,} {_of(texts)}, {words:.0f} words each, by {texts.generator}"
    )
    return place


def main() -> None:
    commands: dict[str, Callable[..., Extractive | Llm | Table]] = {
        "extractive": Extractive,
        "llm": Llm,
        "table": Table,
    }
    with told():
        run(taken(tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)))


if __name__ == "__main__":
    main()
