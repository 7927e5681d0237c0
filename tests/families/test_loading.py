"""What reading a bundle costs a process that does nothing else."""

import subprocess
import sys
from pathlib import Path

import torch

from rayrec.bundle import write_bundle
from rayrec.data.content import write_content
from rayrec.data.content.tokens import tokenize, write_tokens
from rayrec.data.log import Log
from rayrec.data.log.schema import LogSchema
from rayrec.families.language_model.bundle import language_model_parts
from rayrec.families.ranker.bundle import ranker_parts
from rayrec.families.ranker.task import RankingConfig, RankingTask
from rayrec.families.retriever.bundle import RetrieverModules, SavedRetriever, retriever_parts
from rayrec.families.retriever.task import RetrievalConfig
from rayrec.meta_device import on_meta_device
from rayrec.models.catalogue import Catalogue
from rayrec.models.llama import LlamaConfig, LlamaLanguageModel, LlamaShape
from rayrec.models.ranker import RankerArchitecture
from rayrec.models.sasrec import SASRecConfig
from rayrec.text.content_tokenizer import ContentTokenizer
from rayrec.text.tokenizer import train_tokenizer
from tests.conftest import with_quantiles
from tests.families.content.conftest import TOPICS, small_experiment
from tests.families.content.conftest import small_log as small_content
from tests.families.content.test_embedding import untrained
from tests.serve_apps.cascade_parts import small_ranker
from tests.serve_apps.retriever_bundle import small_encoder, small_retriever

LOADERS = {
    "ranker": "rayrec.families.ranker.bundle.load_bundle",
    "binned": "rayrec.families.ranker.bundle.load_bundle",
    "sasrec": "rayrec.families.retriever.bundle.load_retriever",
    "liger": "rayrec.families.retriever.bundle.load_retriever",
    "embsum": "rayrec.families.content.bundle.load_content_ranker",
    "language_model": "rayrec.families.language_model.bundle.load_language_model",
}


def binned_ranker(folder: Path, schema: LogSchema) -> Path:
    """With vectors of numbers, and dot products in place of cross layers."""
    task = RankingTask(schema, RankingConfig(RankerArchitecture(dense_bins=8, interaction="dot")))
    return write_bundle(folder, ranker_parts(task.build(), task.model_config, schema), metrics={}, run_config={})


def sasrec(folder: Path) -> Path:
    config, items = SASRecConfig(dim=8, layers=1, max_length=5, sampled_items=4), 30
    rows = torch.ones(items + 1, dtype=torch.int64)
    model = config.build(Catalogue(items, rows.bool(), rows, None))
    saved = SavedRetriever(RetrievalConfig(sasrec=config), items, None)
    names = tuple(f"item-{i}" for i in range(items))
    return write_bundle(folder, retriever_parts(RetrieverModules(model, None), saved, names), metrics={}, run_config={})


def language_model(folder: Path) -> Path:
    tokenizer = train_tokenizer(["one two three"] * 3, 300)
    model = LlamaLanguageModel(LlamaConfig(tokenizer.vocabulary, LlamaShape(16, 16, 2, 1)))
    return write_bundle(folder, language_model_parts(model, tokenizer), metrics={}, run_config={})


def embsum(folder: Path) -> Path:
    trained, log = train_tokenizer([" ".join(TOPICS)] * 3, 300), small_content()
    tokenizer = ContentTokenizer(trained.json, trained.separator, trained.separator, trained.vocabulary)
    tokens = write_tokens(folder.parent / "tokens", tokenize(log, tokenizer, "small", 16))
    return untrained(small_experiment((write_content(folder.parent / "log", log), tokens)), folder, "embsum").path


def test_a_process_that_reads_a_bundle_of_any_family_does_not_load_torchs_compiler(
    small_log: Path, tmp_path: Path
) -> None:
    """Described on the meta device first, a model must draw nothing and calculate nothing there."""
    schema = with_quantiles(Log.open(small_log).schema)
    folders = {
        "ranker": small_ranker(tmp_path / "ranker", schema, 0),
        "binned": binned_ranker(tmp_path / "binned", schema),
        "sasrec": sasrec(tmp_path / "sasrec"),
        "liger": small_retriever(tmp_path / "liger", small_encoder(tmp_path / "encoder")),
        "embsum": embsum(tmp_path / "embsum"),
        "language_model": language_model(tmp_path / "language_model"),
    }
    loads = [(name, *LOADERS[name].rsplit(".", 1), str(folder)) for name, folder in folders.items()]
    code = (
        f"import importlib, sys\nfor name, module, function, folder in {loads!r}:\n"
        "    getattr(importlib.import_module(module), function)(folder)\n    print(name, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:-1] == [f"{name} False" for name in LOADERS], done.stdout + done.stderr


def test_what_is_described_has_shapes_and_dtypes_and_what_is_there_gets_its_values() -> None:
    with on_meta_device():
        model = torch.nn.Sequential(torch.nn.Embedding(10**9, 64), torch.nn.Linear(64, 3)).double()
        given = torch.nn.init.normal_(torch.zeros(5, device="cpu"))
    assert [(p.is_meta, tuple(p.shape), p.dtype) for p in model.parameters()] == [
        (True, (10**9, 64), torch.float64), (True, (3, 64), torch.float64), (True, (3,), torch.float64)
    ]  # fmt: skip
    assert not torch.equal(given, torch.zeros(5))
