"""A content log's texts as token ids, made once: <folder>/tokens.json, tokenizer.json, items.parquet, <version>.texts.parquet.

Row i of items.parquet is item i + 1, row u of a version's file is row u of its texts: tokens list<int32>, empty where there is
no text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.data.content.lists import Lists
from rayrec.data.content.log import ContentError, ContentLog, TextField
from rayrec.files import whole_folder, write_text_atomically
from rayrec.text.content_tokenizer import ContentTokenizer
from rayrec.typed_json import from_json, to_json

TOKENS_FILE = "tokens.json"


@dataclass(frozen=True)
class TokenRecord:
    """tokenizer: what was asked for. items: fingerprint of the texts. generators: by version of user texts who wrote them."""

    tokenizer: str
    items: str
    start: int
    end: int
    vocabulary: int
    max_text_tokens: int
    generators: Mapping[str, str]
    format: int = 1


@dataclass(frozen=True)
class ContentTokens:
    """items: row i of item i + 1. user_texts: by version, row u of the log's text u."""

    record: TokenRecord
    tokenizer: ContentTokenizer
    items: Lists
    user_texts: Mapping[str, Lists]


def item_tokens(
    tokenizer: ContentTokenizer, fields: Sequence[TextField], columns: Mapping[str, Sequence[str]],
    longest: int | None = None,
) -> list[list[int]]:  # fmt: skip
    """Ids of items from their text columns, each cut to ``longest``."""
    rows = tokenizer.contents([(one.label, one.max_tokens, list(columns[one.name])) for one in fields])
    return [row if longest is None or len(row) <= longest else [*row[: longest - 1], row[-1]] for row in rows]


def tokenize(log: ContentLog, tokenizer: ContentTokenizer, name: str, max_text_tokens: int) -> ContentTokens:
    """All of a log's texts in this process; ``jobs.tokenize_content`` does the same through Ray Data."""
    columns = {one.name: log.items.texts[one.name].to_pylist() for one in log.items.fields}
    texts = {v: tokenizer.texts(own.texts.to_pylist(), max_text_tokens) for v, own in log.user_texts.items()}
    return ContentTokens(
        token_record(log, tokenizer, name, max_text_tokens), tokenizer,
        Lists.of(item_tokens(tokenizer, log.items.fields, columns)), {v: Lists.of(rows) for v, rows in texts.items()},
    )  # fmt: skip


def token_record(log: ContentLog, tokenizer: ContentTokenizer, name: str, max_text_tokens: int) -> TokenRecord:
    generators = {version: own.generator for version, own in log.user_texts.items()}
    return TokenRecord(
        name, log.items.fingerprint, tokenizer.start, tokenizer.end, tokenizer.vocabulary, max_text_tokens, generators
    )


def write_tokens(folder: Path | str, tokens: ContentTokens, *, overwrite: bool = False) -> Path:
    """Write, whole or not at all. Raises ContentError when ``folder`` exists and ``overwrite`` is false, or is anything but
    tokens."""
    folder = Path(folder)
    with whole_folder(folder, TOKENS_FILE, overwrite=overwrite, error=ContentError) as partial:
        for name, lists in {"items": tokens.items, **{f"{v}.texts": t for v, t in tokens.user_texts.items()}}.items():
            pq.write_table(pa.table({"tokens": lists.to_arrow()}), partial / f"{name}.parquet", compression="zstd")
        write_text_atomically(partial / "tokenizer.json", tokens.tokenizer.json)
        write_text_atomically(partial / TOKENS_FILE, to_json(tokens.record))
    return folder


def read_tokens(folder: Path | str, log: ContentLog) -> ContentTokens:
    """Read and check against the log that they are of. Raises ContentError that names the file."""
    folder = Path(folder)
    file = folder / TOKENS_FILE
    if not file.is_file():
        raise ContentError(f"{file}: no such file; is {folder} a folder of jobs.tokenize_content?")
    record = from_json(TokenRecord, file.read_bytes(), str(file))
    if record.items != log.items.fingerprint:
        raise ContentError(f"{folder}: tokens of other items or texts than the log's; make them anew")
    tokenizer = ContentTokenizer(
        (folder / "tokenizer.json").read_text(encoding="utf-8"), record.start, record.end, record.vocabulary
    )
    items = _lists(folder / "items.parquet", len(log.items))
    rows = {version: len(own.texts) for version, own in log.user_texts.items()}
    for version in record.generators:
        if version not in rows:
            raise ContentError(f"{folder}: tokens of user texts {version!r}, which the log lacks; make them anew")
    texts = {version: _lists(folder / f"{version}.texts.parquet", rows[version]) for version in record.generators}
    return ContentTokens(record, tokenizer, items, texts)


def _lists(file: Path, rows: int) -> Lists:
    if not file.is_file():
        raise ContentError(f"{file}: no such file")
    lists = Lists.from_arrow(pq.read_table(file, memory_map=True)["tokens"])
    if len(lists) != rows:
        raise ContentError(f"{file}: {len(lists):,} rows, the log has {rows:,}")
    return lists
