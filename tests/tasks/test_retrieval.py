"""Retrievers of every kind from sequences to bundle: trained by the loop, judged by each method, loaded again."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from rayrec.bundle import BundleError
from rayrec.data.log.streams import StreamPosition
from rayrec.data.sequences import Interactions, ItemTable, SequenceData, leave_one_out, write_sequences
from rayrec.data.sequences.augmentation import AugmentationConfig
from rayrec.data.sequences.streams import JudgedSequences, SequenceStreamConfig
from rayrec.families.retriever.bundle import RetrieverBundle, load_retriever
from rayrec.families.retriever.evaluation import EachMethod, EvaluateRetriever
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.semantic_id_files import read_semantic_ids, write_semantic_ids
from rayrec.families.retriever.split_config import SplitConfig
from rayrec.families.retriever.task import ModelName, RetrievalConfig
from rayrec.metrics.ranking import ABSENT
from rayrec.models.depth_retriever import DepthRetrieverConfig
from rayrec.models.liger import LigerConfig
from rayrec.models.sasrec import SASRecConfig
from rayrec.models.t5 import T5Config
from rayrec.models.tiger import TigerConfig
from rayrec.optim import OptimizerConfig
from rayrec.retrieval.residual_kmeans import ResidualKMeansConfig
from rayrec.retrieval.rqvae import RqVaeConfig
from rayrec.retrieval.searching import Method
from rayrec.retrieval.semantic_tokenizer import TokenizerConfig, fit_tokenizer
from rayrec.training.experiment import train_here
from rayrec.training.loop import LoopConfig
from rayrec.training.reporters import FolderReporter
from rayrec.training.worker import Worker
from rayrec.typed_json import ConfigError

ITEMS, COLD = 30, 29
METHODS: tuple[Method, ...] = ("dense", "generative", "hybrid")
T5 = T5Config(dim=16, feed_forward=32, heads=2, head_dim=8, encoder_layers=1, decoder_layers=1, dropout=0.0)
RETRIEVAL = RetrievalConfig(
    sasrec=SASRecConfig(dim=16, layers=1, max_length=4, dropout=0.0),
    depth=DepthRetrieverConfig(dim=16, layers=1, max_length=4, dropout=0.0, input_dropout=0.0, item_dropout=0.0),
    tiger=TigerConfig(T5, max_length=4, embedding_std=0.1),
    liger=LigerConfig(T5, projection=(16,), projection_dropout=0.0, input_dropout=0.0, max_length=4),
    beams=10,
)


def sequence_data() -> SequenceData:
    """Users walk round 1, 2, ... 28, 1, ...; items 29 and 30 are reached by some users' last step only."""
    generator = np.random.default_rng(0)
    starts = generator.integers(0, 28, 300)
    lengths = generator.integers(4, 7, 300)
    walks = [np.arange(s, s + n) % 28 + 1 for s, n in zip(starts, lengths, strict=True)]
    for walk in walks[:20]:
        walk[-1] = COLD
    walks[20][-1] = ITEMS
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = ItemTable.of([f"item-{i}" for i in range(1, ITEMS + 1)])
    users = pa.array([f"user-{i}" for i in range(300)])
    return SequenceData(Interactions(offsets, np.concatenate(walks).astype(np.int32), ITEMS), items, users)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Imported sequences and semantic IDs."""
    folder = tmp_path_factory.mktemp("retrieval")
    sequences = write_sequences(folder / "sequences", sequence_data())
    torch.manual_seed(0)
    tokenizer = TokenizerConfig(kmeans=ResidualKMeansConfig(2, 6, iterations=5))
    catalogue = sequence_data().items.fingerprint
    ids = write_semantic_ids(folder / "ids", fit_tokenizer(torch.randn(ITEMS, 8), tokenizer), "random", catalogue)
    return sequences, ids


def experiment(folders: tuple[Path, Path], model: ModelName, epochs: int = 12) -> RetrieverExperiment:
    return RetrieverExperiment(
        folders[0],
        folders[1],
        retrieval=replace(RETRIEVAL, model=model),
        optimizer=OptimizerConfig(learning_rate=1e-2, embeddings="adamw", embedding_learning_rate=1e-2),
        loop=LoopConfig(epochs=epochs, patience=None),
        stream=SequenceStreamConfig(batch_size=64),
    )


@pytest.fixture(scope="module")
def trained(
    folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[ModelName], RetrieverBundle]:
    """A trained bundle of each model, made when first asked for."""

    @cache
    def bundle(model: ModelName) -> RetrieverBundle:
        epochs = {"tiger": 20}.get(model, 12)  # without absolute positions it learns more slowly
        wanted, folder = experiment(folders, model, epochs), tmp_path_factory.mktemp(model)
        wanted.check()
        reporter = FolderReporter(folder / "checkpoints")
        train_here(wanted, reporter, say=lambda text: None)
        checkpoint = reporter.latest()
        assert checkpoint is not None
        return load_retriever(wanted.save_bundle(checkpoint, folder / "bundle"))

    return bundle


@torch.no_grad()
def judged(folders: tuple[Path, Path], bundle: RetrieverBundle, method: Method) -> dict[str, dict[str, float | None]]:
    """Test metrics by group."""
    task, data = experiment(folders, bundle.saved.retrieval.model).task(), sequence_data().interactions
    evaluation = task.evaluation()
    for batch in JudgedSequences(data, leave_one_out(data).test, SequenceStreamConfig(), length=4).epoch_batches():
        evaluation.update(task.ranks(task.searcher(bundle.model), batch, method), batch)
    return evaluation.summarize()


@pytest.mark.parametrize("model", ["sasrec", "depth", "tiger", "dense", "liger"])
def test_every_model_trains_is_judged_and_comes_back_from_its_bundle(
    folders: tuple[Path, Path], trained: Callable[[ModelName], RetrieverBundle], model: ModelName
) -> None:
    bundle = trained(model)
    test = bundle.metadata.metrics["test"]
    assert test["all"]["users"] == 300.0
    assert test["cold"]["users"] == 21.0
    in_set = test["in_set"]["recall@5"]
    assert in_set is not None
    assert in_set > 0.8
    assert bundle.names[28] == "item-29"
    found = judged(folders, bundle, "generative" if model in ("depth", "tiger") else "dense")
    assert found["in_set"] == pytest.approx(test["in_set"], abs=1e-9)
    assert found["cold"] == pytest.approx(test["cold"], abs=1e-9)


def test_a_model_trained_in_bfloat16_is_judged_as_its_bundle_answers(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """In float32: in eight bits scores tie, and a tie counts against the target."""
    wanted = experiment(folders, "tiger", 3)
    wanted = replace(wanted, loop=replace(wanted.loop, precision="bfloat16"))
    reporter = FolderReporter(tmp_path / "checkpoints")
    train_here(wanted, reporter, say=lambda text: None)
    checkpoint = reporter.latest()
    assert checkpoint is not None
    bundle = load_retriever(wanted.save_bundle(checkpoint, tmp_path / "bundle"))
    found = judged(folders, bundle, "generative")
    assert found["in_set"] == pytest.approx(bundle.metadata.metrics["test"]["in_set"], abs=1e-9)


def test_a_comparison_judges_each_method_at_each_width_and_generative_at_the_least_alone(
    folders: tuple[Path, Path], trained: Callable[[ModelName], RetrieverBundle]
) -> None:
    liger, sasrec = trained("liger"), trained("sasrec")
    found = EachMethod((3, 5)).judge_each(liger.path)
    assert set(found) == {
        "dense",
        "generative 3",
        "hybrid 3",
        "hybrid 5",
    }  # wider, the hybrid's searches are generative's
    for group, metrics in judged(folders, liger, "dense").items():
        assert found["dense"].metrics[group] == pytest.approx(metrics, abs=1e-9)
    assert all(one.split == "test" for one in found.values())
    (alone,) = EachMethod((3, 5)).judge_each(sasrec.path).items()
    assert alone[0] == ""  # one method, one width: nothing to tell apart
    assert alone[1].costs["parameters"] == sum(p.numel() for p in sasrec.model.parameters())
    widths = EvaluateRetriever(beams=(3, 5)).judge(liger.path)
    assert {(one.method, one.beams) for one in widths} - {("dense", None)} == {
        (method, beams) for method in ("generative", "hybrid") for beams in (3, 5)
    }


@pytest.mark.parametrize(("model", "method"), [("sasrec", "dense"), ("tiger", "generative"), ("liger", "hybrid")])
def test_with_the_history_excluded_a_target_rises_by_the_items_of_it_that_stood_above(
    folders: tuple[Path, Path], trained: Callable[[ModelName], RetrieverBundle], model: ModelName, method: Method
) -> None:
    wanted, bundle = experiment(folders, model), trained(model)
    task = wanted.task()
    batch = next(wanted.data(Worker()).open_evaluation("test", 1).epoch_batches())
    batch.target[:5] = batch.history[:5, -1]  # taken a second time
    searcher = task.searcher(bundle.model.eval())
    found = searcher.search(batch.asked, ITEMS, method, beams=ITEMS).items.tolist()
    excluded = task.ranks(searcher, batch, method, ITEMS, "excluded").tolist()
    assert (task.ranks(searcher, batch, method, ITEMS)[:5] != ABSENT).any()
    assert excluded[:5] == [ABSENT] * 5
    for row, (items, target) in enumerate(zip(found, batch.target.tolist(), strict=True)):
        if row >= 5:
            left = [item for item in items if item not in batch.history[row].tolist()][:10]  # beams: the depth of lists
            assert excluded[row] == (left.index(target) + 1 if target in left else ABSENT)
    both = EvaluateRetriever(beams=(10,), history=("ranked", "excluded")).judge(bundle.path)
    assert [one.history for one in both if one.method == method] == ["ranked", "excluded"]
    ranked, without = (one.metrics["all"]["recall@5"] or 0.0 for one in both if one.method == method)
    assert without >= ranked  # nobody here takes an item twice


def test_the_history_is_ranked_or_excluded_or_once_each(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for wrong in ((), ("excluded", "excluded")):
        with pytest.raises(ConfigError, match="history: ranked or excluded, or once each"):
            EachMethod((5,), wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="history: the axes of a benchmark are judged with it ranked"):
        EvaluateRetriever(benchmark=tmp_path, history=("excluded",))


@pytest.mark.parametrize("model", ["sasrec", "liger"])
def test_on_later_sequences_cold_is_what_training_never_saw(
    folders: tuple[Path, Path], trained: Callable[[ModelName], RetrieverBundle], tmp_path: Path, model: ModelName,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Everyone took two items more: what had been some users' last one, which no training saw, is in training parts now."""
    before, data = sequence_data().interactions, sequence_data()
    walks = [before.items[a:b] for a, b in pairwise(before.offsets.tolist())]
    later = np.concatenate(
        [np.concatenate([walk, [walk[0], COLD if i % 9 == 0 else walk[1]]]) for i, walk in enumerate(walks)]
    )
    offsets = before.offsets + 2 * np.arange(len(before.offsets))
    events = Interactions(offsets, later.astype(np.int32), ITEMS)
    assert leave_one_out(events).seen[COLD]
    sequences = write_sequences(tmp_path / "later", SequenceData(events, data.items, data.users))
    bundle = trained(model)
    for judgement in EvaluateRetriever(beams=(10,), sequences=sequences).judge(bundle.path):
        assert judgement.metrics["cold"]["users"] == sum(i % 9 == 0 for i in range(300))
    assert not capsys.readouterr().err
    if model == "sasrec":  # nothing of it tells what was seen
        config = json.loads((bundle.path / "config.json").read_text())
        moved = shutil.copytree(bundle.path, tmp_path / "moved")
        strangers = SequenceData(events, ItemTable.of([f"thing-{i}" for i in range(ITEMS)]), data.users)
        for place in (tmp_path / "gone", write_sequences(tmp_path / "strangers", strangers)):
            config["run_config"]["sequences"] = str(place)
            (moved / "config.json").write_text(json.dumps(config))
            (judgement,) = EvaluateRetriever(sequences=sequences).judge(moved)
            assert judgement.metrics["cold"]["users"] == 0
            told = "moved: the sequences that it was trained on are gone or others: in_set and cold are told apart by"
            assert told in capsys.readouterr().err


def test_hybrid_ranks_cold_items_at_least_as_well_as_dense_alone(
    folders: tuple[Path, Path], trained: Callable[[ModelName], RetrieverBundle]
) -> None:
    recalls = {method: judged(folders, trained("liger"), method) for method in METHODS}
    hybrid, dense = recalls["hybrid"], recalls["dense"]
    for name, value in hybrid["cold"].items():
        assert value is not None
        assert value >= (dense["cold"][name] or 0.0)  # fewer candidates compete, and every cold item is one
    assert (hybrid["cold"]["recall@10"] or 0.0) > 0.5
    assert (hybrid["in_set"]["recall@5"] or 0.0) > 0.8
    assert (recalls["generative"]["in_set"]["recall@5"] or 0.0) > 0.8


def test_items_are_encoded_once_in_a_pass_and_anew_in_the_next(folders: tuple[Path, Path]) -> None:
    wanted = experiment(folders, "dense")
    wanted = replace(wanted, stream=replace(wanted.stream, evaluation_batch_size=64))
    task = wanted.task()
    model = task.build().eval()
    encoded = []
    whole = model.dense.item_vectors
    model.dense.item_vectors = lambda *given: encoded.append(1) or whole(*given)
    ranks = []
    for _ in range(2):
        evaluation, parts = task.evaluation(), []
        for batch in wanted.data(Worker()).open_evaluation("test", 1).epoch_batches():
            parts.append(task.predict(model, batch))
            evaluation.update(parts[-1], batch)
        assert len(parts) > 2
        ranks.append(torch.cat(parts))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
    assert len(encoded) == 2
    assert not torch.equal(*ranks)
    with torch.no_grad():  # as a search that has seen no other weights
        batch = next(wanted.data(Worker()).open_evaluation("test", 1).epoch_batches())
        task.evaluation()
        assert torch.equal(task.predict(model, batch), task.ranks(task.searcher(model), batch, "dense"))


def test_a_depth_retriever_with_a_dense_head_is_still_selected_by_what_it_generates(folders: tuple[Path, Path]) -> None:
    retrieval = replace(RETRIEVAL, model="depth", depth=replace(RETRIEVAL.depth, dense_weight=0.5))
    wanted = replace(experiment(folders, "depth"), retrieval=retrieval)
    task, model = wanted.task(), wanted.task().build().eval()
    batch = next(wanted.data(Worker()).open_evaluation("valid", 1).epoch_batches())
    by_method = {method: task.ranks(task.searcher(model), batch, method) for method in METHODS}
    assert torch.equal(task.predict(model, batch), by_method["generative"])
    assert not torch.equal(by_method["dense"], by_method["generative"])


def test_a_bundle_answers_by_the_method_that_was_best_on_validation(
    folders: tuple[Path, Path], trained: Callable[[ModelName], RetrieverBundle]
) -> None:
    wanted, bundle = experiment(folders, "liger"), trained("liger")
    validation, task = wanted.data(Worker()).open_evaluation("valid", 1), wanted.task()
    for method in METHODS:
        evaluation = task.evaluation()
        for batch in validation.epoch_batches():
            evaluation.update(task.ranks(task.searcher(bundle.model), batch, method), batch)
        assert bundle.saved.validated is not None
        assert bundle.saved.validated[method] == pytest.approx(evaluation.summarize()["all"]["ndcg@10"])
    for best in METHODS:
        saved = replace(bundle.saved, validated={method: 0.1 + 0.2 * (method == best) for method in METHODS})
        assert saved.by_default_first(METHODS)[0] == best
    assert (
        replace(bundle.saved, validated=None).by_default_first(METHODS)[0] == "hybrid"
    )  # as bundles of before answered
    assert trained("sasrec").saved.validated is None


def test_sampled_softmax_draws_from_the_training_popularity(folders: tuple[Path, Path]) -> None:
    retrieval = replace(RETRIEVAL, sasrec=replace(RETRIEVAL.sasrec, sampled_items=15))
    wanted = replace(experiment(folders, "sasrec"), retrieval=retrieval)
    task = wanted.task()
    data = sequence_data().interactions
    counts = np.zeros(ITEMS + 1, np.int64)
    for user in range(300):
        for item in data.items[data.offsets[user] : data.offsets[user + 1] - 2]:
            counts[item] += 1
    assert task.catalogue.counts.tolist() == counts.tolist()
    batch, _ = next(wanted.data(Worker()).open_training(StreamPosition(), 1).epoch_batches())
    torch.manual_seed(0)
    model = task.build()
    assert task.loss(model, batch).total.isfinite()
    sampled, log_probability = model._negatives()
    assert len(sampled) == 15
    np.testing.assert_allclose(log_probability.exp().numpy(), np.maximum(counts / counts.sum(), 1e-12), rtol=1e-5)


def test_a_model_without_its_inputs_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs semantic_ids"):
        replace(experiment(folders, "tiger"), semantic_ids=None).check()
    few = fit_tokenizer(torch.randn(5, 8), TokenizerConfig(kmeans=ResidualKMeansConfig(1, 3)))
    write_semantic_ids(tmp_path / "few", few, "random", "few")
    with pytest.raises(ConfigError, match="semantic IDs of 5 items"):
        replace(experiment(folders, "tiger"), semantic_ids=tmp_path / "few").check()
    other = fit_tokenizer(torch.randn(ITEMS, 8), TokenizerConfig(kmeans=ResidualKMeansConfig(1, 3)))
    write_semantic_ids(tmp_path / "other", other, "random", "another catalogue")
    with pytest.raises(ConfigError, match=r"of other items or texts .* though as many"):
        replace(experiment(folders, "tiger"), semantic_ids=tmp_path / "other").check()
    with pytest.raises(ConfigError, match="no such file"):
        replace(experiment(folders, "tiger"), semantic_ids=tmp_path / "absent").check()
    left_out, early, late = SplitConfig(), SplitConfig("temporal", 2, 9), SplitConfig("temporal", 3, 9)
    fitted = fit_tokenizer(torch.randn(ITEMS, 8), TokenizerConfig(kmeans=ResidualKMeansConfig(1, 3)))
    for made, judged, why in (
        (left_out, early, "leave_one_out trains on, which may hold events that temporal from 2 validates"),
        (early, left_out, "temporal from 2 trains on, which may hold events that leave_one_out"),
        (late, early, "temporal from 3 trains on, which may hold events that temporal from 2"),
    ):
        ids = write_semantic_ids(tmp_path / "ids", fitted, "random", sequence_data().items.fingerprint, made)
        with pytest.raises(ConfigError, match=rf"ids: made of what {why}"):
            replace(experiment(folders, "tiger"), semantic_ids=ids, split=judged).check()
    write_semantic_ids(tmp_path / "ids", fitted, "random", sequence_data().items.fingerprint, left_out)
    replace(experiment(folders, "tiger"), semantic_ids=tmp_path / "ids").check()
    with pytest.raises(ConfigError, match="must be adamw"):
        replace(experiment(folders, "tiger"), optimizer=OptimizerConfig())
    with pytest.raises(ConfigError, match="needs valid_from"):
        SplitConfig("temporal")


def test_augmentation_is_refused_where_training_is_on_prefixes(folders: tuple[Path, Path]) -> None:
    stream = SequenceStreamConfig(augmentation=AugmentationConfig(crop=0.5))
    replace(experiment(folders, "sasrec"), stream=stream).check()
    with pytest.raises(ConfigError, match=r"stream.augmentation changes the windows .*; 'tiger' trains on prefixes"):
        replace(experiment(folders, "tiger"), stream=stream).check()


def test_a_method_without_its_head_is_refused(folders: tuple[Path, Path]) -> None:
    wanted = experiment(folders, "dense")
    task = wanted.task()
    batch = next(wanted.data(Worker()).open_evaluation("test", 1).epoch_batches())
    with pytest.raises(ConfigError, match="needs a generative head"):
        task.ranks(task.searcher(task.build()), batch, "hybrid")


def test_dense_leaves_ligers_constrained_softmax_out_with_its_generative_head() -> None:
    liger = replace(RETRIEVAL.liger, constrained_softmax=True)
    plain, constrained = (replace(RETRIEVAL, model="dense", liger=one) for one in (RETRIEVAL.liger, liger))
    assert constrained.architecture == plain.architecture


@pytest.mark.parametrize("components", [None, 3, 20])
@pytest.mark.parametrize("method", ["kmeans", "rqvae"])
def test_semantic_ids_come_back_from_disk_and_encode_new_items_alike(
    tmp_path: Path, method: str, components: int | None
) -> None:
    torch.manual_seed(0)
    raw = 5 + 3 * torch.randn(40, 8)
    small = RqVaeConfig(hidden=(8,), latent=4, levels=2, codebook_size=4, epochs=2)
    config = TokenizerConfig(method, components, ResidualKMeansConfig(2, 4), small)  # type: ignore[arg-type]
    made = fit_tokenizer(raw, config)
    found = read_semantic_ids(write_semantic_ids(tmp_path / "ids", made, "test", "none")).items
    assert torch.equal(found.ids.codes, made.ids.codes)
    assert torch.equal(found.tokenizer.encode(raw), made.ids.codes[:, :-1])
    assert found.report == made.report
    torch.testing.assert_close(found.tokenizer.standardized(raw), found.embeddings)


def test_a_bundle_that_was_changed_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    wanted = experiment(folders, "sasrec", epochs=1)
    reporter = FolderReporter(tmp_path / "checkpoints")
    train_here(wanted, reporter, say=lambda text: None)
    checkpoint = reporter.latest()
    assert checkpoint is not None
    bundle = wanted.save_bundle(checkpoint, tmp_path / "bundle")
    (bundle / "items.json").write_text('{"names": ["a"]}')
    with pytest.raises(BundleError, match=r"items.json.*sha256"):
        load_retriever(bundle)
