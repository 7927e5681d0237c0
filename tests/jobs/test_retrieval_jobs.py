"""The retrieval jobs in a row on a small catalogue with text: import, embed, semantic IDs, compare, evaluate; sweep spaces."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from jobs import compare_retrieval, embed_items, import_sequences, semantic_ids
from rayrec.data.sequences import ItemTable, read_sequences
from rayrec.data.sequences.events import EventFilter
from rayrec.data.sequences.item_embeddings import read_embeddings
from rayrec.data.sequences.streams import SequenceStreamConfig
from rayrec.families.retriever.evaluation import EvaluateRetriever
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.task import RetrievalConfig
from rayrec.models.liger import LigerConfig
from rayrec.models.sasrec import SASRecConfig
from rayrec.models.t5 import T5Config
from rayrec.models.tiger import TigerConfig
from rayrec.retrieval.residual_kmeans import ResidualKMeansConfig
from rayrec.retrieval.semantic_tokenizer import TokenizerConfig
from rayrec.runs.sweeping import apply_parameters
from rayrec.text.encoder import TextEncoderConfig
from rayrec.training.experiment import train_here
from rayrec.training.loop import LoopConfig
from rayrec.training.reporters import FolderReporter
from rayrec.typed_json import ConfigError
from tune_spaces import find_space, space_names

WORDS = ["red", "blue", "green", "shoe", "lamp", "book"]
T5 = T5Config(dim=8, feed_forward=8, heads=1, head_dim=8, encoder_layers=1, decoder_layers=1)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    shape = BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(shape).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 users, 25 items with text and a brand, from CSV files."""
    folder = tmp_path_factory.mktemp("own")
    generator = np.random.default_rng(0)
    events = pd.DataFrame(
        {"user": np.repeat(np.arange(60), 6), "item": generator.integers(0, 25, 360), "timestamp": np.arange(360)}
    )
    items = pd.DataFrame(
        {
            "item": np.arange(25),
            "text": [f"{WORDS[i % 6]} {WORDS[i // 6]}" for i in range(25)],
            "brand": [f"b{i % 5}" for i in range(25)],
        }
    )
    events.to_csv(folder / "events.csv", index=False)
    items.to_csv(folder / "items.csv", index=False)
    columns = import_sequences.TableColumns(item_attributes=("brand",))
    command = import_sequences.Table(
        folder / "events.csv",
        import_sequences.Destination(folder / "sequences"),
        folder / "items.csv",
        columns,
        EventFilter(1),
    )
    return import_sequences.run(command)


def experiment(sequences: Path, ids: Path | None) -> RetrieverExperiment:
    retrieval = RetrievalConfig(
        sasrec=SASRecConfig(dim=8, layers=1, max_length=5),
        tiger=TigerConfig(T5, max_length=5),
        liger=LigerConfig(T5, projection=(8,), max_length=5),
        beams=10,
    )
    loop = LoopConfig(epochs=1)
    return RetrieverExperiment(
        sequences, ids, retrieval=retrieval, loop=loop, stream=SequenceStreamConfig(batch_size=64)
    )


def test_embedding_goes_on_where_it_was_and_feeds_ids_comparison_and_evaluation(
    ray_session: None, runs: Path, sequences: Path, encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = embed_items.EmbedItems(sequences, tmp_path / "embeddings", TextEncoderConfig(encoder), shard=10, cpus=0.5)
    embed_items.run(command)
    items = read_sequences(sequences).items
    whole, record = read_embeddings(tmp_path / "embeddings", items)
    assert (record.shards, whole.shape) == (3, (25, 8))
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1.0, rtol=1e-5)
    kept = tmp_path / "embeddings" / "part-00000.parquet"
    written = kept.stat().st_mtime_ns
    (tmp_path / "embeddings" / "part-00001.parquet").unlink()
    with pytest.raises(ConfigError, match=r"part-00001.parquet is missing"):
        read_embeddings(tmp_path / "embeddings", items)
    embed_items.run(command)
    np.testing.assert_allclose(read_embeddings(tmp_path / "embeddings", items)[0], whole, rtol=1e-5, atol=1e-6)
    assert kept.stat().st_mtime_ns == written
    names, texts = items.names.to_pylist(), items.texts.to_pylist()
    for others in (
        ItemTable.of(names[::-1], texts, items.attributes),
        ItemTable.of(names, texts[::-1], items.attributes),
    ):
        with pytest.raises(ConfigError, match="of other items or texts than these, though as many"):
            read_embeddings(tmp_path / "embeddings", others)
    record_file = tmp_path / "embeddings" / "embeddings.json"
    known = record_file.read_text()
    record_file.write_text(json.dumps({k: v for k, v in json.loads(known).items() if k != "catalogue"}))
    read_embeddings(tmp_path / "embeddings", items)  # from before there were fingerprints: by the texts
    with pytest.raises(ConfigError, match="of other items or texts than these, though as many"):
        read_embeddings(tmp_path / "embeddings", ItemTable.of(names, texts[::-1], items.attributes))
    record_file.write_text(known)

    tokenizer = TokenizerConfig(kmeans=ResidualKMeansConfig(2, 5))
    ids = semantic_ids.run(
        semantic_ids.MakeSemanticIds(sequences, tmp_path / "ids", tmp_path / "embeddings", tokenizer=tokenizer)
    )
    assert ids.ids.num_items == 25
    assert "Items that share 1 code" in (tmp_path / "ids" / "report" / "report.html").read_text()

    compare = compare_retrieval.CompareRetrieval(
        "compared", experiment(sequences, tmp_path / "ids"), seeds=(0,), beams=(10,), history=("ranked",)
    )
    rows = compare_retrieval.run(compare)
    assert [row.name for row in rows] == [
        "sasrec",
        "dense",
        "tiger 10",
        "liger dense",
        "liger generative 10",
        "liger hybrid 10",
    ]
    capsys.readouterr()
    assert compare_retrieval.run(compare) == rows  # from its files: nothing is trained again
    out = capsys.readouterr().out
    assert "seed 0" not in out
    assert set(json.loads(out.splitlines()[-1])) == {row.name for row in rows}
    assert (runs / "compared" / "report" / "quality_against_cost.png").is_file()
    both = compare_retrieval.run(replace(compare, history=("ranked", "excluded")))
    assert [row.name for row in both][:2] == ["sasrec", "sasrec excluded"]
    assert [row.name for row in both][-2:] == ["liger hybrid 10", "liger hybrid excluded 10"]
    wider = compare_retrieval.run(replace(compare, beams=(5, 10)))
    assert [row.name for row in wider][2:] == [
        "tiger generative 5", "tiger generative 10", "liger dense", "liger generative 5", "liger hybrid 5", "liger hybrid 10"
    ]  # fmt: skip
    assert "seed 0: " in capsys.readouterr().out
    assert {row.name: row.means for row in wider}["liger hybrid 10"] == {row.name: row.means for row in rows}[
        "liger hybrid 10"
    ]


def test_attributes_stand_in_for_text(sequences: Path, tmp_path: Path) -> None:
    tokenizer = TokenizerConfig(kmeans=ResidualKMeansConfig(1, 5))
    found = semantic_ids.run(semantic_ids.MakeSemanticIds(sequences, tmp_path / "ids", dim=5, tokenizer=tokenizer))
    names = read_sequences(sequences).items.names.to_pylist()  # numbered by their first appearance
    brands = np.array([int(name) % 5 for name in names])
    for brand in range(5):
        own = found.embeddings[torch.from_numpy(brands == brand)]
        others = found.embeddings[torch.from_numpy(brands != brand)]
        assert torch.cdist(own, own).max() < 1e-2 < 0.5 < torch.cdist(own, others).min()


def test_a_bundle_is_judged_by_each_method_it_has(sequences: Path, tmp_path: Path) -> None:
    wanted = experiment(sequences, None)
    reporter = FolderReporter(tmp_path / "checkpoints")
    train_here(wanted.absolute(), reporter, say=lambda text: None)
    checkpoint = reporter.latest()
    assert checkpoint is not None
    bundle = wanted.absolute().save_bundle(checkpoint, tmp_path / "bundle")
    (judged,) = EvaluateRetriever().judge(bundle)
    assert judged.metrics["all"]["users"] == 60.0
    assert judged.index_bytes == 4 * 8 * 25


@pytest.mark.parametrize("name", [name for name in space_names() if "retriever" in find_space(name).families])
def test_every_swept_setting_is_one_of_the_experiment(sequences: Path, name: str) -> None:
    base, space = experiment(sequences, None), find_space(name)
    if name == "mender":  # sweeps the variant that the base names
        base = replace(base, retrieval=replace(base.retrieval, model="mender_emb"))
    values = {path: domain.sample() for path, domain in space.of(base).items()}
    assert apply_parameters(base, {**space.settings, **values}) != base
