"""Documents become token blocks: nothing lost, nothing twice, the same with Ray Data and without."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.import_text import ImportOptions, ImportParquet, run
from rayrec.data.log import Log, LogError
from rayrec.data.text_stream import TextImport, documents, write_blocks
from rayrec.errors import UserError
from rayrec.text.tokenizer import TextTokenizer, TokenizerError, read_tokenizer, train_tokenizer

WORDS = ("steel", "beaker", "glass", "µm", "filter", "10 mm", "Größe", "tube", "\n")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TextImport:
    folder = tmp_path_factory.mktemp("texts")
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, generator.integers(1, 30))) for _ in range(600)]
    texts[5] = ""
    files = (folder / "a.parquet", folder / "b.parquet")
    pq.write_table(pa.table({"body": [*texts[:350], None, texts[0]]}), files[0])
    pq.write_table(pa.table({"body": texts[350:]}), files[1])
    return TextImport(files, "body", block_tokens=16, valid_share=0.2, test_share=0.1, reader="in_process")


@pytest.fixture(scope="module")
def tokenizer(source: TextImport) -> TextTokenizer:
    return train_tokenizer(documents(source, "train"), 300)


@pytest.fixture(scope="module")
def corpus(source: TextImport, tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blocks(source, tokenizer.json, tokenizer.separator, tmp_path_factory.mktemp("corpus") / "blocks")


def blocks_of(folder: Path, split: str) -> np.ndarray:
    return np.array(
        [row for file in Log.open(folder).files(split) for row in pq.read_table(file)["tokens"].to_pylist()]
    )


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_blocks_hold_the_documents_in_order_and_overlap_by_one(
    source: TextImport, tokenizer: TextTokenizer, corpus: Path, split: str
) -> None:
    expected = [i for ids in tokenizer.encode(list(documents(source, split))) for i in (*ids, tokenizer.separator)]
    blocks = blocks_of(corpus, split)
    assert blocks.shape == ((len(expected) - 1) // 16, 17)
    assert (blocks[1:, 0] == blocks[:-1, -1]).all()
    stream = [*blocks[0], *blocks[1:, 1:].flatten()]
    assert stream == expected[: len(stream)]
    assert len(expected) - len(stream) < 16


def test_every_document_is_in_one_split_and_equal_texts_are_together(source: TextImport) -> None:
    splits = [list(documents(source, split)) for split in ("train", "valid", "test")]
    assert sum(map(len, splits)) == 600  # an empty one and a null are left out, one occurs twice
    assert not set(splits[0]) & set(splits[1])
    assert 0.12 < len(splits[1]) / 600 < 0.28


def test_ray_data_writes_the_same_corpus(
    ray_session: None, source: TextImport, tokenizer: TextTokenizer, corpus: Path, tmp_path: Path
) -> None:
    by_ray = write_blocks(replace(source, reader="ray"), tokenizer.json, tokenizer.separator, tmp_path / "blocks")
    for split in ("train", "valid", "test"):
        np.testing.assert_array_equal(blocks_of(by_ray, split), blocks_of(corpus, split))


def test_bytes_of_any_text_come_back(tokenizer: TextTokenizer) -> None:
    text = "日本 \x00 naïve — µm 10"
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_a_tokenizer_folder_is_read_with_its_own_separator(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.json.replace("<|endoftext|>", "[DOC]"))
    with pytest.raises(TokenizerError, match="no token to separate"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "[DOC]"}}')
    assert read_tokenizer(tmp_path).separator == tokenizer.separator
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: not the JSON object"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="not a tokenizer"):
        read_tokenizer(tmp_path)


def test_a_wrong_column_or_file_is_named(source: TextImport, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no column 'text'; columns: body"):
        write_blocks(replace(source, column="text"), tokenizer.json, 0, tmp_path / "out")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1")
    with pytest.raises(LogError, match=r"broken\.parquet: not a readable Parquet file"):
        write_blocks(replace(source, files=(broken,)), tokenizer.json, 0, tmp_path / "out")
    with pytest.raises(LogError, match="too little text for one block"):
        write_blocks(replace(source, block_tokens=100_000), tokenizer.json, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"column": "absent"}, r"own\.parquet: no column 'absent'; columns: text, words"),
        ({"column": "words"}, r"own\.parquet: column 'words' is list.*, expected text"),
        ({"seed": -2}, "seed must lie in 0.*, not -2"),
        ({"vocabulary": 3}, "needs at least 257 tokens, not 3"),
    ],
)
def test_the_job_refuses_what_it_cannot_make_a_corpus_of(tmp_path: Path, wrong: dict[str, Any], told: str) -> None:
    pq.write_table(pa.table({"text": ["steel beaker"] * 50, "words": [["steel"]] * 50}), tmp_path / "own.parquet")
    column = wrong.pop("column", "text")
    with pytest.raises(UserError, match=told):
        run(ImportParquet(tmp_path, ImportOptions(tmp_path / "out", reader="in_process", **wrong), column))
    assert not (tmp_path / "out").exists()


def not_utf8(file: Path) -> Path:
    texts = [f"text {i}".encode() for i in range(1_500)]
    texts[1_200] = b"caf\xe9"
    lengths = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    buffers = [None, pa.py_buffer(lengths), pa.py_buffer(b"".join(texts))]
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), len(texts), buffers)}), file)
    return file


def test_text_that_is_not_utf8_is_named_by_its_row(tmp_path: Path) -> None:
    file = not_utf8(tmp_path / "own.parquet")
    with pytest.raises(LogError, match=r"own\.parquet: column 'text', row 1,200 \(from 0\): not UTF-8"):
        run(ImportParquet(file, ImportOptions(tmp_path / "out", reader="in_process")))
    assert not (tmp_path / "out").exists()


def test_ray_data_names_the_row_of_a_text_that_is_not_utf8_too(
    ray_session: None, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    source = TextImport((not_utf8(tmp_path / "own.parquet"),), reader="ray")
    with pytest.raises(LogError, match=r"own\.parquet: column 'text', row 1,200 \(from 0\): not UTF-8"):
        write_blocks(source, tokenizer.json, tokenizer.separator, tmp_path / "out")
