"""Texts of a content log to token ids, once: python -m jobs.tokenize_content --content CONTENT --out TOKENS.

Runs through Ray Data; training then reads ids only. The tokenizer is that of the encoder to be trained.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray

from jobs.command_line import read
from rayrec.data.content import Lists, read_content
from rayrec.data.content.tokens import TOKENS_FILE, ContentTokens, item_tokens, token_record, write_tokens
from rayrec.errors import told
from rayrec.files import check_replaceable
from rayrec.runs.cluster import connect
from rayrec.text.content_tokenizer import load_tokenizer


@dataclass(frozen=True)
class TokenizeContent:
    """Token ids of a content log."""

    content: Path
    """Folder of jobs.import_content."""
    out: Path
    """Folder of the tokens."""
    tokenizer: str = "minilm"
    """"minilm", the folder or hub id of an encoder, or a file spiece.model of T5."""
    max_text_tokens: int = 128
    """Longer texts of users are cut."""
    max_item_tokens: int | None = None
    """So are items longer than this; None = by their fields' caps."""
    block: int = 4096
    """Texts a Ray Data block."""
    overwrite: bool = False
    """Replace tokens that are there."""


def run(command: TokenizeContent) -> Path:
    """Tokenize everything; prints what there is."""
    started = time.perf_counter()
    check_replaceable(command.out, TOKENS_FILE, overwrite=command.overwrite)
    log = read_content(command.content)
    tokenizer = load_tokenizer(command.tokenizer)  # a wrong name is an error here, before anything is started
    connect()
    fields, most = log.items.fields, command.max_text_tokens
    items = _through_ray(
        {"item": log.items.names, **{one.name: log.items.texts[one.name] for one in fields}}, command.block,
        lambda batch: item_tokens(tokenizer, fields, batch, command.max_item_tokens),
    )  # fmt: skip
    texts = {
        version: _through_ray(
            {"text": own.texts}, command.block, lambda batch: tokenizer.texts(batch["text"].tolist(), most)
        )
        for version, own in log.user_texts.items()
    }
    record = token_record(log, tokenizer, command.tokenizer, most)
    write_tokens(command.out, ContentTokens(record, tokenizer, items, texts), overwrite=command.overwrite)
    lengths = items.lengths
    print(
        f"{command.out}: {len(items):,} items, {lengths.mean():.1f} tokens each, at most {lengths.max()}; "
        f"{len(texts)} versions of user texts; {time.perf_counter() - started:.1f} s"
    )
    return command.out


def _through_ray(columns: dict[str, pa.Array], block: int, tokens: Any) -> Lists:
    """One list a row, in order."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    table = pa.table({**columns, "row": np.arange(len(next(iter(columns.values()))))})

    def ids(batch: dict[str, NDArray[Any]]) -> pa.Table:
        return pa.table({"row": batch["row"], "tokens": pa.array(tokens(batch), pa.list_(pa.int32()))})

    blocks = [table.slice(start, block) for start in range(0, len(table), block)]
    dataset = ray.data.from_arrow(blocks).map_batches(ids, batch_size=None)
    found = pa.concat_tables(dataset.iter_batches(batch_size=None, batch_format="pyarrow")).sort_by("row")
    return Lists.from_arrow(found["tokens"])


def main() -> None:
    with told():
        run(read(TokenizeContent, description=__doc__))


if __name__ == "__main__":
    main()
