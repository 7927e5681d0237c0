"""Documents to a corpus of token blocks for jobs.train lm: python -m jobs.import_text parquet --files FILES --out CORPUS.

``amazon2018`` takes the item texts of a processed Amazon 2018 folder. The tokenizer is a byte-level BPE trained on the training
split, unless --tokenizer names a local tokenizer folder.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jobs.command_line import read_one_of
from rayrec.data.log import check_log_place
from rayrec.data.public.amazon2018 import read_amazon2018_processed
from rayrec.data.text_stream import TextImport, documents, text_files, write_blocks, write_documents
from rayrec.errors import told
from rayrec.runs.cluster import connect
from rayrec.text.tokenizer import read_tokenizer, train_tokenizer


@dataclass(frozen=True)
class ImportOptions:
    """Of every corpus."""

    out: Path
    """The corpus's folder."""
    vocabulary: int = 4096
    """Tokens of the BPE that is trained."""
    tokenizer: Path | None = None
    """Folder of one to use instead."""
    block_tokens: int = 128
    """Tokens predicted in a row."""
    valid_share: float = 0.05
    """Of the documents."""
    test_share: float = 0.05
    """Of the documents."""
    seed: int = 0
    """Of the draw of splits."""
    reader: Literal["ray", "in_process"] = "ray"
    """"ray" tokenizes with Ray Data, "in_process" in this process."""
    overwrite: bool = False
    """Replace what is there."""


@dataclass(frozen=True)
class ImportParquet:
    """Parquet files with one document a row."""

    files: Path
    """A file, or a folder whose Parquet files are read in order of name."""
    options: Annotated[ImportOptions, tyro.conf.arg(name="")]
    """Where the log goes and how it is written."""
    column: str = "text"
    """That holds the documents."""

    @contextmanager
    def texts(self) -> Iterator[tuple[tuple[Path, ...], str]]:
        """Files of Parquet, while they are there, and the column of their texts."""
        yield tuple(file.resolve() for file in text_files(self.files)), self.column


@dataclass(frozen=True)
class ImportAmazon2018:
    """Item texts of a processed Amazon 2018 folder (<name>.inter.json, <name>.item.json): one document an item."""

    folder: Path
    """Of the published files."""
    options: Annotated[ImportOptions, tyro.conf.arg(name="")]
    """Where the log goes and how it is written."""
    name: str = "Scientific"
    """Of the category, as its files are called."""

    @contextmanager
    def texts(self) -> Iterator[tuple[tuple[Path, ...], str]]:
        items = read_amazon2018_processed(self.folder, self.name).items
        with tempfile.TemporaryDirectory(prefix="rayrec-text-") as folder:
            yield (write_documents(items.texts.to_pylist(), Path(folder) / "items.parquet"),), "text"


def run(command: ImportParquet | ImportAmazon2018) -> Path:
    """Make the corpus; prints what it holds."""
    check_log_place(command.options.out, overwrite=command.options.overwrite)
    with command.texts() as (files, column):
        return _import(_source(files, column, command.options), command.options)


def _source(files: tuple[Path, ...], column: str, options: ImportOptions) -> TextImport:
    return TextImport(
        files, column, options.block_tokens, options.valid_share, options.test_share, options.seed, options.reader
    )


def _import(source: TextImport, options: ImportOptions) -> Path:
    if options.tokenizer is None:
        tokenizer = train_tokenizer(documents(source, "train"), options.vocabulary)
    else:
        tokenizer = read_tokenizer(options.tokenizer)
    if source.reader == "ray":
        connect()
    out = write_blocks(source, tokenizer.json, tokenizer.separator, options.out, overwrite=options.overwrite)
    details = json.loads((out / "import.json").read_text(encoding="utf-8"))
    for split, counts in details["text"].items():
        blocks = details["rows"].get(split, 0)
        print(f"{split:<6}{counts['documents']:>10,} documents {counts['tokens']:>12,} tokens {blocks:>9,} blocks")
    print(f"corpus: {out}, {tokenizer.vocabulary:,} tokens in the vocabulary")
    return out


def main() -> None:
    with told():
        run(read_one_of({"parquet": ImportParquet, "amazon2018": ImportAmazon2018}, description=__doc__))


if __name__ == "__main__":
    main()
