"""Texts of users for SPAR and EmbSum: python -m jobs.summarize_users extractive --content CONTENT --version phrases.

extractive   phrases that tell a user from the others (class-based TF-IDF), in a template; labelled extractive
llm          asked of an OpenAI-compatible endpoint by a prompt of rayrec/text/prompts (interest.v1 for SPAR, summary.v1 for
             EmbSum); --dry-run prints prompts and an estimate. Answers are kept in CONTENT.VERSION.answers.db the moment they
             are there: a killed run goes on, and nothing is paid twice. The key is read from the environment, never written.
table        texts that are there already: a Parquet or CSV file with columns user and text, and who wrote them

Each run adds a version to the log, labelled by who wrote it; tokenize again to use it. The first two read current histories,
or, with --before test, those from before a part that a study will judge.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import tyro

from jobs.asking import asked
from rayrec.data.content import ContentLog, UserTexts, add_user_texts, read_content
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
    before: Literal["valid", "test"] | None = None
    """Read the history that a user had at its first impression of this part, so that the texts know nothing of it: for a study.
    None = its current history, with all that is known of it: for serving."""
    newest: int = 30
    "Contents of a user's history that are read."
    words: int = 100
    "Of each field of a content."
    users: int | None = None
    "The first so many; None = all."

    def __post_init__(self) -> None:
        if min(self.newest, self.words, self.users or 1) < 1:
            raise ValueError("newest, words and users must be at least 1")


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
    """Write a version and print what is there; None after a dry run. Raises ConfigError or ChatError that say what is wrong."""
    log = read_content(command.into.content)
    if command.into.version in log.user_texts:
        raise ConfigError(f"{command.into.content}: user texts of version {command.into.version!r} are there already")
    if isinstance(command, Table):
        return _add(command.into, _from_table(command, log))
    when = f"history before its {command.into.before} impressions" if command.into.before else "current history"
    read = f"written from the newest {command.into.newest} contents of each user's {when}"
    if isinstance(command, Extractive):
        documents = [" ".join(" ".join(parts) for parts in one) for one in _contents(command.into, log)]
        texts = extractive_interests(documents, command.sentences)
        return _add(command.into, UserTexts("extractive", _padded(texts, log), read))
    return _asked(command, log, read)


def _contents(into: Target, log: ContentLog) -> list[list[list[str]]]:
    """Of each user the newest contents, each as its non-empty fields cut to ``words``."""
    columns = [log.items.texts[one.name].to_pylist() for one in log.items.fields]
    shortened: dict[int, list[str]] = {}
    found = []
    read = log.current if into.before is None else log.histories_before(into.before)
    for row in read[: into.users].tolist():
        items = log.histories[row][: into.newest].tolist() if row >= 0 else []
        for item in items:
            if item not in shortened:
                parts = (" ".join(column[item - 1].split()[: into.words]) for column in columns)
                shortened[item] = [part for part in parts if part]
        found.append([shortened[item] for item in items])
    return found


def _asked(command: Llm, log: ContentLog, read: str) -> Path | None:
    template, contents = read_prompt(command.prompt), _contents(command.into, log)
    rows = [row for row, one in enumerate(contents) if any(one)]
    questions = [template.substitute(items="\n".join(f"- {'; '.join(p)}" for p in contents[row] if p)) for row in rows]
    cache = command.cache or command.into.content.with_name(
        f"{command.into.content.name}.{command.into.version}.answers.db"
    )
    replies = asked(
        questions, lambda _, answer: checked_interest(answer), command.endpoint, cache, what="users with a history",
        answers=command.answers, shown=command.shown if command.dry_run else None,
    )  # fmt: skip
    if replies is None:
        return None
    texts = [""] * len(contents)
    for row, reply in zip(rows, replies, strict=True):
        texts[row] = reply.value or ""
    without = sum(reply.value is None for reply in replies)
    if without:
        print(f"{without:,} users without an answer that obeys the rules; the first: "
              f"{next(reply.problem for reply in replies if reply.value is None)}")  # fmt: skip
    generator = f"an LLM ({command.endpoint.model}), prompt {command.prompt}"
    return _add(command.into, UserTexts(generator, _padded(texts, log), read))


def _from_table(command: Table, log: ContentLog) -> UserTexts:
    file = command.file
    if not file.is_file():
        raise ConfigError(f"{file}: no such file")
    try:
        table = pq.read_table(file) if file.suffix == ".parquet" else pacsv.read_csv(
            file, parse_options=pacsv.ParseOptions(newlines_in_values=True)
        )  # fmt: skip
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{file}: {str(error).splitlines()[0]}") from None
    for name in ("user", "text"):
        if name not in table.column_names:
            raise ConfigError(f"{file}: column {name!r} is missing; found {', '.join(table.column_names)}")
    given = {str(u): str(t or "") for u, t in zip(table["user"].to_pylist(), table["text"].to_pylist(), strict=True)}
    texts = [given.pop(user, "") for user in log.users.to_pylist()]
    if not any(texts):
        raise ConfigError(f"{file}: no text of a user of {command.into.content}")
    if given:
        print(f"{len(given):,} texts of users who are not in the log are left out")
    return UserTexts(command.generator, pa.array(texts, pa.string()), command.notes)


def _padded(texts: list[str], log: ContentLog) -> pa.Array:
    return pa.array(texts + [""] * (len(log.users) - len(texts)), pa.string())


def _add(into: Target, texts: UserTexts) -> Path:
    place = add_user_texts(into.content, into.version, texts)
    written = [text for text in texts.texts.to_pylist() if text]
    words = sum(len(text.split()) for text in written) / max(len(written), 1)
    print(f"{place}: {len(written):,} of {len(texts.texts):,} users, {words:.0f} words each, by {texts.generator}")
    return place


def main() -> None:
    commands: dict[str, Callable[..., Extractive | Llm | Table]] = {
        "extractive": Extractive,
        "llm": Llm,
        "table": Table,
    }
    with told():
        run(tyro.extras.subcommand_cli_from_dict(commands, description=__doc__))


if __name__ == "__main__":
    main()
