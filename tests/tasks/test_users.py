"""TIGER that knows its users, from sequences to the service: who asks decides where the walk goes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from rayrec.data.log.hashing import hash_ids
from rayrec.data.sequences import Interactions, ItemTable, SequenceData, write_sequences
from rayrec.families.retriever.bundle import load_retriever
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.judging import judge
from rayrec.families.retriever.semantic_id_files import write_semantic_ids
from rayrec.families.retriever.task import RetrievalConfig
from rayrec.models.t5 import T5Config
from rayrec.models.tiger import TigerConfig
from rayrec.optim import OptimizerConfig
from rayrec.retrieval.index import IndexConfig
from rayrec.retrieval.residual_kmeans import ResidualKMeansConfig
from rayrec.retrieval.semantic_tokenizer import TokenizerConfig, fit_tokenizer
from rayrec.training.experiment import train_here
from rayrec.training.loop import LoopConfig
from rayrec.training.reporters import FolderReporter
from rayrec.training.worker import Worker
from serve_apps.items.changes import ItemChanges
from serve_apps.retriever.served import Retrieved, RetrieveRequest, ServedRetriever

TOKENS, ITEMS, USERS = 8, 24, 250
T5 = T5Config(dim=16, feed_forward=32, heads=2, head_dim=8, encoder_layers=1, decoder_layers=1, dropout=0.0)
TIGER = TigerConfig(T5, max_length=1, embedding_std=0.3)


def home(user: str) -> int:
    """The item to which a user's walk returns: known from the name's hash alone."""
    return int(hash_ids([user], TOKENS)[0])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Every user goes from any item home and from there anywhere; a model that reads one item cannot know where home is."""
    folder, generator = tmp_path_factory.mktemp("users"), np.random.default_rng(0)
    names = [f"user-{i}" for i in range(USERS)]
    walks = generator.integers(TOKENS + 1, ITEMS + 1, (USERS, 6))
    walks[:, 1::2] = np.array([home(name) for name in names])[:, None]
    interactions = Interactions(np.arange(0, 6 * USERS + 1, 6), walks.ravel().astype(np.int32), ITEMS)
    items = ItemTable.of([f"item-{i}" for i in range(1, ITEMS + 1)])
    sequences = write_sequences(folder / "sequences", SequenceData(interactions, items, pa.array(names)))
    torch.manual_seed(0)
    tokenizer = TokenizerConfig(kmeans=ResidualKMeansConfig(2, 6, iterations=5))
    return sequences, write_semantic_ids(
        folder / "ids", fit_tokenizer(torch.randn(ITEMS, 8), tokenizer), "", items.fingerprint
    )


def trained(
    folders: tuple[Path, Path], config: TigerConfig, folder: Path, epochs: int = 12
) -> tuple[RetrieverExperiment, Path]:
    experiment = RetrieverExperiment(
        *folders, retrieval=RetrievalConfig("tiger", tiger=config, beams=10),
        optimizer=OptimizerConfig(learning_rate=1e-2, embeddings="adamw", embedding_learning_rate=1e-2),
        loop=LoopConfig(epochs=epochs, patience=None, keep="last"),
    )  # fmt: skip
    train_here(experiment, FolderReporter(folder / "checkpoints"))
    checkpoint = FolderReporter(folder / "checkpoints").latest()
    assert checkpoint is not None
    return experiment, experiment.save_bundle(checkpoint, folder / "bundle")


def ndcg(experiment: RetrieverExperiment, bundle: Path) -> float:
    task, model = experiment.task(), load_retriever(bundle).model
    found = judge(experiment, task, task.searcher(model), "generative").metrics["all"]["ndcg@10"]
    assert found is not None
    return found


def test_a_tiger_that_knows_its_users_sends_each_home_and_its_service_does_the_same(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    blind = ndcg(*trained(folders, TIGER, tmp_path / "blind"))
    experiment, bundle = trained(folders, replace(TIGER, user_tokens=TOKENS), tmp_path / "knows")
    assert blind < 0.7 < 0.95 < ndcg(experiment, bundle)

    served = ServedRetriever(load_retriever(bundle), "tiger", "1", ItemChanges(), IndexConfig())
    assert served.describe()["reads_users"]
    asked = ["user-0", "user-1", "never seen", " user-0 ", "", None]
    answers = served.retrieve([RetrieveRequest(history=["item-20"], user=user, k=3) for user in asked])
    found = [answer for answer in answers if isinstance(answer, Retrieved)]
    assert [one.user for one in found] == [True, True, True, True, False, False]
    assert [one.items[0] for one in found[:3]] == [f"item-{home(user)}" for user in ("user-0", "user-1", "never seen")]
    assert found[3] == found[0]
    assert found[4] == found[5]
    twin = next(name for name in (f"user-{i}" for i in range(2, USERS)) if home(name) == home("user-0"))
    (same,) = served.retrieve([RetrieveRequest(history=["item-20"], user=twin, k=3)])
    assert isinstance(same, Retrieved)
    assert same.items == found[0].items
    assert same.scores == pytest.approx(found[0].scores)


def test_users_reach_training_and_judging_on_every_worker_and_other_names_are_other_data(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    experiment = RetrieverExperiment(*folders, retrieval=RetrievalConfig("tiger", tiger=replace(TIGER, user_tokens=5)))
    tokens = hash_ids([f"user-{i}" for i in range(USERS)], 5)
    pairs = []
    for rank in range(2):
        for batch in experiment.data(Worker(rank, 2)).open_evaluation("test", 1).epoch_batches():
            assert batch.user is not None
            pairs += zip(batch.user.tolist(), batch.target.tolist(), strict=True)
    homes = [home(f"user-{i}") for i in range(USERS)]
    assert sorted(pairs) == sorted(zip(tokens.tolist(), homes, strict=True))
    blind = replace(experiment, retrieval=RetrievalConfig("tiger", tiger=TIGER))
    assert all(batch.user is None for batch in blind.data(Worker()).open_evaluation("test", 1).epoch_batches())
    assert experiment.fingerprint() != blind.fingerprint()


def test_a_model_that_knows_no_users_answers_all_alike_and_says_so(folders: tuple[Path, Path], tmp_path: Path) -> None:
    _, bundle = trained(folders, replace(TIGER, max_length=2), tmp_path, epochs=1)
    served = ServedRetriever(load_retriever(bundle), "tiger", "1", ItemChanges(), IndexConfig())
    assert not served.describe()["reads_users"]
    one, other = served.retrieve([RetrieveRequest(history=["item-20"], user=user) for user in ("a", None)])
    assert one == other
    assert isinstance(one, Retrieved)
    assert not one.user
