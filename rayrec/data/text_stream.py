"""Documents to a log of token blocks: what language models are trained on, streamed and resumed like any other log.

Documents are read and tokenized in order (by Ray Data tasks, or here), joined with a separator token between them, and cut
into blocks of T + 1 tokens, of which the last one is also the first of the next block, so that each token is predicted once.
A document belongs to one split, by a hash of its text: equal texts never lie on both sides.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rayrec.data.log import SPLITS, LogError, LogWriter
from rayrec.data.log.hashing import hash_strings, mix, uniform
from rayrec.data.log.schema import LogSchema, SequenceFeature
from rayrec.files import whole_file

TOKENS = "tokens"
TOKENIZER_FILE = "tokenizer.json"
_DOCUMENTS_AT_ONCE = 1024


@dataclass(frozen=True)
class TextImport:
    """files: Parquet files with one document a row in ``column``, a null or empty one left out.

    block_tokens: T. valid_share, test_share: of the documents. seed: of the draw of splits, from 0. reader: "ray" tokenizes with
    Ray Data, "in_process" here.
    """

    files: tuple[Path, ...]
    column: str = "text"
    block_tokens: int = 128
    valid_share: float = 0.05
    test_share: float = 0.05
    seed: int = 0
    reader: Literal["ray", "in_process"] = "ray"

    def __post_init__(self) -> None:
        if not self.files:
            raise LogError("no files of documents are given")
        if self.block_tokens < 2:
            raise LogError(f"block_tokens must be at least 2, not {self.block_tokens}")
        if not 0 <= self.seed < 2**63:
            raise LogError(f"seed must lie in 0..{2**63 - 1}, not {self.seed}")
        if not (self.valid_share > 0 and self.test_share >= 0 and self.valid_share + self.test_share < 1):
            raise LogError(
                f"valid_share must be above 0 and leave something for training, not {self.valid_share} beside {self.test_share}"
            )


def block_schema(block_tokens: int, vocabulary: int) -> LogSchema:
    """A log of blocks: one sequence of T + 1 token ids a row, no labels."""
    tokens = SequenceFeature(TOKENS, max_length=block_tokens + 1, encoding="hash", buckets=vocabulary - 1)
    return LogSchema(name="text", features=(tokens,), tasks=())


def documents(source: TextImport, split: str) -> Iterator[str]:
    """The texts of a split in order, one Parquet batch in memory at a time.

    Raises LogError naming the file when one cannot be read, lacks the column, or holds text in it that is not UTF-8.
    """
    _check_files(source)
    wanted = SPLITS.index(split)
    for table in _tables(source):
        texts, splits = _texts_and_splits(table, source)
        yield from texts.filter(pa.array(splits == wanted)).to_pylist()


def write_blocks(
    source: TextImport, tokenizer_json: str, separator: int, out: Path, *, overwrite: bool = False
) -> Path:
    """Tokenize all documents and write the log of blocks to ``out``, its tokenizer beside the schema.

    tokenizer_json: the ``tokenizers`` package's JSON; separator: id of the token after each document.
    Raises LogError naming the file when one cannot be read, lacks the column or holds text in it that is not UTF-8, or when a
    needed split has no block.
    """
    vocabulary = int(Tokenizer.from_str(tokenizer_json).get_vocab_size())
    _check_files(source)
    counts = {split: {"documents": 0, "tokens": 0, "bytes": 0} for split in SPLITS}
    rests = {split: np.empty(0, np.int32) for split in SPLITS}
    with LogWriter(out, block_schema(source.block_tokens, vocabulary), overwrite=overwrite) as writer:
        for encoded in _encoded(source, tokenizer_json, separator):
            splits = encoded.column("split").to_numpy()
            for number, split in enumerate(SPLITS):
                chosen = encoded.filter(pa.array(splits == number))
                ids = pa.chunked_array(chosen.column(TOKENS)).combine_chunks().flatten().to_numpy(zero_copy_only=False)
                counts[split]["documents"] += chosen.num_rows
                counts[split]["tokens"] += len(ids)
                counts[split]["bytes"] += int(np.sum(chosen.column("bytes").to_numpy()))
                blocks, rests[split] = _cut(np.concatenate([rests[split], ids]), source.block_tokens)
                writer.write(split, pa.table({TOKENS: pa.array(list(blocks), pa.list_(pa.int32()))}))
        for split in ("train", "valid"):
            if not writer.rows[split]:
                raise LogError(
                    f"{source.files[0]}: too little text for one block of {source.block_tokens} tokens in {split}"
                )
        writer.add_file(TOKENIZER_FILE, tokenizer_json)
        writer.finish({"importer": "text", "text": counts, "block_tokens": source.block_tokens, "separator": separator})
    return out


def _cut(ids: NDArray[np.int32], length: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Blocks (n, length + 1) that overlap by one token, and what is left over for the next ones."""
    n = max(0, (len(ids) - 1) // length)
    places = np.arange(n)[:, None] * length + np.arange(length + 1)
    return ids[places], ids[n * length :]


def _encoded(source: TextImport, tokenizer_json: str, separator: int) -> Iterator[pa.Table]:
    """Tables with split, bytes and tokens of each document, in order."""
    encode = partial(_encode, source=source, tokenizer_json=tokenizer_json, separator=separator)
    if source.reader == "in_process":
        yield from map(encode, _tables(source))
        return
    import ray.data

    dataset = ray.data.read_parquet([str(file) for file in source.files], columns=[source.column])
    dataset = dataset.map_batches(encode, batch_format="pyarrow", batch_size=_DOCUMENTS_AT_ONCE, num_cpus=0.5)
    context = dataset.context
    context.enable_progress_bars = context.enable_operator_progress_bars = context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    except ray.exceptions.RayError:
        for _ in _tables(source):  # a task knows no file: a text that is not UTF-8 is looked for here
            pass
        raise


def _encode(table: pa.Table, *, source: TextImport, tokenizer_json: str, separator: int) -> pa.Table:
    texts, splits = _texts_and_splits(table, source)
    encodings = Tokenizer.from_str(tokenizer_json).encode_batch(texts.to_pylist(), add_special_tokens=False)
    tokens = [np.array([*encoding.ids, separator], np.int32) for encoding in encodings]
    sizes = np.array([len(text.encode()) for text in texts.to_pylist()], np.int64)
    return pa.table(
        {"split": pa.array(splits, pa.int8()), "bytes": sizes, TOKENS: pa.array(tokens, pa.list_(pa.int32()))}
    )


def _texts_and_splits(table: pa.Table, source: TextImport) -> tuple[pa.Array, NDArray[np.int64]]:
    """The texts that are not empty, and each one's split as an index into SPLITS."""
    texts = table.column(source.column).combine_chunks().cast(pa.string())
    texts = texts.filter(pa.compute.greater(pa.compute.binary_length(texts), 0))
    draws = uniform(mix(hash_strings(texts) ^ np.uint64(source.seed + 1)))
    return texts, np.where(
        draws < source.valid_share, 1, np.where(draws < source.valid_share + source.test_share, 2, 0)
    )


def _tables(source: TextImport) -> Iterator[pa.Table]:
    for file in source.files:
        try:
            with pq.ParquetFile(file) as parquet:
                row = 0
                for batch in parquet.iter_batches(_DOCUMENTS_AT_ONCE, columns=[source.column]):
                    table = pa.table(batch)
                    _check_utf8(table, source.column, file, row)
                    yield table
                    row += table.num_rows
        except (pa.ArrowException, OSError) as error:
            raise LogError(f"{file}: not a readable Parquet file: {error}") from None


def _check_utf8(table: pa.Table, column: str, file: Path, first_row: int) -> None:
    """Arrow takes any bytes of a Parquet file for text. Raises LogError."""
    try:
        table.validate(full=True)
    except pa.ArrowInvalid:
        for row, text in enumerate(table.column(column), first_row):
            try:
                text.as_py()
            except UnicodeDecodeError as error:
                raise LogError(f"{file}: column {column!r}, row {row:,} (from 0): not UTF-8: {error.reason}") from None
        raise


def _check_files(source: TextImport) -> None:
    for file in source.files:
        try:
            found = pq.read_schema(file)
        except (pa.ArrowException, OSError) as error:
            raise LogError(f"{file}: not a readable Parquet file: {error}") from None
        _check_column(file, found, source.column)


def _check_column(file: Path, found: pa.Schema, column: str) -> None:
    index = found.get_field_index(column)
    if index < 0:
        raise LogError(f"{file}: no column {column!r}; columns: {', '.join(found.names)}")
    if not (pa.types.is_string(found.field(index).type) or pa.types.is_large_string(found.field(index).type)):
        raise LogError(f"{file}: column {column!r} is {found.field(index).type}, expected text")


def text_files(folder_or_file: Path) -> tuple[Path, ...]:
    """A Parquet file, or all those of a folder in order of name."""
    if folder_or_file.is_dir():
        return tuple(sorted(folder_or_file.glob("*.parquet")))
    return (folder_or_file,)


def write_documents(texts: Sequence[str], file: Path, column: str = "text") -> Path:
    """A Parquet file of documents, whole or not there."""
    with whole_file(file) as partial_file:
        pq.write_table(pa.table({column: pa.array(texts, pa.string())}), partial_file)
    return file
