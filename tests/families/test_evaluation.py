"""jobs.evaluate judges a bundle of any family as training did, on any split or another log."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

from jobs.evaluate import run
from rayrec.data.log import Log
from rayrec.data.log.schema import SchemaError, write_schema
from rayrec.data.log.streams import LogStream, StreamConfig
from rayrec.data.text_stream import TextImport, documents, write_blocks
from rayrec.families.language_model.bundle import load_language_model
from rayrec.families.language_model.evaluation import sample
from rayrec.families.language_model.experiment import LanguageModelExperiment
from rayrec.families.ranker.bundle import load_bundle
from rayrec.families.ranker.evaluation import EvaluateRanker
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.scoring import features_of
from rayrec.families.ranker.task import RankingConfig
from rayrec.methods.distillation import DistillationConfig
from rayrec.models.ranker import RankerArchitecture
from rayrec.optim import OptimizerConfig
from rayrec.text.tokenizer import train_tokenizer
from rayrec.training.checkpoint import Progress, read_progress
from rayrec.training.experiment import Experiment, train_here
from rayrec.training.loop import LoopConfig
from rayrec.training.reporters import FolderReporter
from rayrec.typed_json import ConfigError


def trained(experiment: Experiment, folder: Path) -> tuple[Path, Progress]:
    reporter = FolderReporter(folder / "checkpoints")
    train_here(experiment.absolute(), reporter, say=lambda text: None)
    checkpoint = reporter.latest()
    assert checkpoint is not None
    return experiment.absolute().save_bundle(checkpoint, folder / "bundle"), read_progress(checkpoint)


@pytest.fixture(scope="module")
def ranker(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Progress]:
    ranking = RankingConfig(
        RankerArchitecture(embedding_dim=4, trunk=(16,), tower=(8,)),
        distillation=DistillationConfig(target="negative", head="auxiliary"),
        known_features_split=4,
    )
    experiment = RankerExperiment(
        small_log, unlabeled=small_log, unlabeled_ratio=1.0, ignored_features=("price",), ranking=ranking,
        loop=LoopConfig(epochs=1), stream=StreamConfig(batch_size=512),
    )  # fmt: skip
    return trained(experiment, tmp_path_factory.mktemp("ranker"))


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_ranker_is_judged_as_its_training_judged_it(ranker: tuple[Path, Progress], split: str) -> None:
    bundle, progress = ranker
    table = run(str(bundle), ["--split", split])
    wanted = progress.evaluations[split]
    assert [row[0] for row in table.rows] == ["click", "buy"]
    for row in table.rows:
        for name, cell in zip(table.columns[1:], row[1:], strict=True):
            value = wanted[row[0]][name]
            assert value is not None
            assert float(cell.replace(",", "")) == pytest.approx(value, abs=1e-5)


def test_rows_of_each_user_are_judged_as_a_loop_over_users_judges_them(
    ranker: tuple[Path, Progress], small_log: Path
) -> None:
    bundle, _ = ranker
    table = run(str(bundle), ["--by", "item"])
    loaded, log = load_bundle(bundle), Log.open(small_log)
    view = Log(log.path, features_of(loaded.schema, log.schema, log.path))
    stream = LogStream(view, "test", StreamConfig(512, shuffle=False, drop_last=False))
    with torch.no_grad():
        scores = torch.cat([loaded.model(batch)[:, 0] for batch in stream.epoch_batches()]).numpy()
    rows = pq.read_table([*log.files("test")], columns=["item", "click"]).to_pandas()
    aucs = [roc_auc_score(own.click, scores[own.index]) for _, own in rows.groupby("item") if own.click.nunique() == 2]
    assert float(table.rows[0][table.columns.index("auc_by_item")]) == pytest.approx(np.mean(aucs), abs=1e-5)
    assert table.rows[0][table.columns.index("items")] == str(len(aucs))
    with pytest.raises(ConfigError, match="no column is called 'buyer'; there are age, price"):
        run(str(bundle), ["--by", "buyer"])
    with pytest.raises(ConfigError, match="column 'history' holds list"):
        run(str(bundle), ["--by", "history"])


def test_rows_of_unknown_users_are_no_user_of_their_own(
    ranker: tuple[Path, Progress], small_log: Path, tmp_path: Path
) -> None:
    bundle, _ = ranker
    log = Log.open(small_log)
    rows: pa.Table = pq.read_table(log.files("test")[0]).slice(0, 400)
    item = pc.if_else(pc.equal(rows["item"], 3), 0, rows["item"]).cast(pa.int32())
    for name, column in (("all", rows["item"]), ("unknown", item)):
        folder = tmp_path / name
        (folder / "test").mkdir(parents=True)
        place = rows.column_names.index("item")
        pq.write_table(rows.set_column(place, rows.field("item"), column), folder / "test" / "part-00000.parquet")
        write_schema(log.schema, folder / "schema.json")
    counts = [
        int(table.rows[0][table.columns.index("items")])
        for table in (run(str(bundle), ["--by", "item", "--log", str(tmp_path / name)]) for name in ("all", "unknown"))
    ]
    assert counts[1] == counts[0] - 1


def test_rows_of_each_request_are_judged_while_a_ranker_trains_as_afterwards(small_log: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_log, tmp_path / "log"))
    for file in folder.glob("*/*.parquet"):
        table = pq.read_table(file)
        requests = pa.array(np.random.default_rng(0).integers(0, len(table) // 6 + 1, len(table)) - 2**62)
        pq.write_table(table.append_column("request", requests), file)
    write_schema(replace(Log.open(small_log).schema, request_id="request"), folder / "schema.json")
    experiment = RankerExperiment(
        folder, ranking=RankingConfig(RankerArchitecture(embedding_dim=4, trunk=(8,), tower=(4,))),
        loop=LoopConfig(epochs=1), stream=StreamConfig(batch_size=512),
    )  # fmt: skip
    bundle, progress = trained(experiment, tmp_path)
    names = ("auc_by_request", "mrr_by_request", "ndcg@5_by_request", "ndcg@10_by_request")
    followed = {(point.split, point.task, point.metric) for point in progress.curve}
    assert {("valid", task, name) for task in ("click", "buy") for name in names} <= followed
    told = EvaluateRanker("test").evaluate(bundle)
    for row in told.rows:
        found = dict(zip(told.columns, row, strict=True))
        trained_so = progress.evaluations["test"][found[told.columns[0]]]
        for name in names:
            value = trained_so[name]
            assert value is not None
            assert float(found[name]) == pytest.approx(value, abs=1e-4)


def test_a_ranker_is_judged_on_another_log_and_one_without_its_features_is_refused(
    ranker: tuple[Path, Progress], small_log: Path, tmp_path: Path
) -> None:
    bundle, _ = ranker
    log = Log.open(small_log)
    (tmp_path / "few" / "test").mkdir(parents=True)
    few: pa.Table = pq.read_table(log.files("test")[0]).slice(0, 100)
    pq.write_table(few, tmp_path / "few" / "test" / "part-00000.parquet")
    write_schema(log.schema, tmp_path / "few" / "schema.json")
    table = run(str(bundle), ["--log", str(tmp_path / "few")])
    assert table.rows[0][table.columns.index("rows")] == "100"
    write_schema(
        log.schema.with_features(tuple(f for f in log.schema.features if f.name != "age")),
        tmp_path / "few" / "schema.json",
    )
    with pytest.raises(SchemaError, match="feature 'age', which this log lacks"):
        run(str(bundle), ["--log", str(tmp_path / "few")])


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Progress]:
    folder = tmp_path_factory.mktemp("lm")
    texts = [
        f"the {color} {thing} costs {n} dollars"
        for n in range(40)
        for color in ("red", "blue")
        for thing in ("pen", "cup")
    ]
    pq.write_table(pa.table({"text": texts}), folder / "texts.parquet")
    source = TextImport(
        (folder / "texts.parquet",), block_tokens=16, valid_share=0.2, test_share=0.2, reader="in_process"
    )
    tokenizer = train_tokenizer(documents(source, "train"), 300)
    write_blocks(source, tokenizer.json, tokenizer.separator, folder / "corpus")
    experiment = LanguageModelExperiment(
        folder / "corpus",
        shape="micro",
        optimizer=OptimizerConfig(embeddings="adamw", learning_rate=3e-3, embedding_learning_rate=3e-3),
        loop=LoopConfig(epochs=3),
        stream=StreamConfig(batch_size=8),
    )
    return trained(experiment, folder)


def test_a_language_model_is_judged_as_its_training_judged_it(language_model: tuple[Path, Progress]) -> None:
    bundle, progress = language_model
    table = run(str(bundle), [])
    perplexity = progress.evaluations["test"]["text"]["perplexity"]
    assert float(table.rows[0][table.columns.index("perplexity")]) == pytest.approx(perplexity, rel=1e-4)


def test_a_language_model_writes_on_from_a_prompt_and_the_same_seed_writes_the_same(
    language_model: tuple[Path, Progress],
) -> None:
    bundle = load_language_model(language_model[0])
    first, again, other = (sample(bundle, "the red", tokens=12, temperature=2.0, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert first.startswith("the red")
    likeliest = {sample(bundle, "the", tokens=8, temperature=0.0, seed=seed) for seed in range(3)}
    assert len(likeliest) == 1
    with pytest.raises(ConfigError, match="tokens >= 1"):
        sample(bundle, "", tokens=0, temperature=1.0, seed=0)


def test_a_language_model_writes_what_its_last_place_says(language_model: tuple[Path, Progress]) -> None:
    """Greedy writing against the model asked anew after each token, with a prompt of several tokens."""
    bundle = load_language_model(language_model[0])
    prompt = "the red dress of"
    ids = [bundle.tokenizer.separator, *bundle.tokenizer.encode([prompt])[0]]
    assert len(ids) > 3
    with torch.no_grad():
        for _ in range(6):
            drawn = int(bundle.model(torch.tensor([ids]))[0, len(ids) - 1].argmax())
            if drawn == bundle.tokenizer.separator:
                break
            ids.append(drawn)
    assert sample(bundle, prompt, tokens=6, temperature=0.0, seed=0) == bundle.tokenizer.decode(ids[1:])
