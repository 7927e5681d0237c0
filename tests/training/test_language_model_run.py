"""Language models train in the one worker loop: they learn, resume bit for bit, and come back from their bundle."""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from rayrec.bundle import BundleError
from rayrec.data.log import LogError
from rayrec.data.log.streams import StreamConfig
from rayrec.data.text_stream import TextImport, documents, write_blocks
from rayrec.families.language_model.bundle import load_language_model
from rayrec.families.language_model.experiment import LanguageModelExperiment
from rayrec.families.ranker.bundle import load_bundle
from rayrec.families.table import read_experiment
from rayrec.metrics.perplexity import Perplexity
from rayrec.optim import OptimizerConfig, ProjectionConfig
from rayrec.runs.run_report import run_sections
from rayrec.runs.sweeping import SweepSpace, apply_parameters
from rayrec.text.tokenizer import train_tokenizer
from rayrec.training.checkpoint import Progress, best_weights, read_progress
from rayrec.training.experiment import train_here
from rayrec.training.loop import LoopConfig
from rayrec.training.reporters import CheckpointWriter, FolderReporter
from rayrec.training.worker import Worker
from rayrec.typed_json import to_json
from tune_spaces import find_space


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language of 26 sentences: what follows a number is certain, which number comes is not."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 26, (240, 8), generator=generator).tolist()
    texts = [" ".join(f"item {n} follows {chr(97 + n)} after {n * n}." for n in row) for row in numbers]
    pq.write_table(pa.table({"text": texts}), folder / "texts.parquet")
    source = TextImport((folder / "texts.parquet",), block_tokens=32, valid_share=0.1, reader="in_process")
    tokenizer = train_tokenizer(documents(source, "train"), 300)
    return write_blocks(source, tokenizer.json, tokenizer.separator, folder / "blocks")


@pytest.fixture
def experiment(corpus: Path) -> LanguageModelExperiment:
    return LanguageModelExperiment(
        corpus,
        shape="micro",
        optimizer=OptimizerConfig(learning_rate=1e-2, embeddings="adamw", embedding_learning_rate=1e-2),
        loop=LoopConfig(epochs=1, evaluate_every_steps=8, checkpoint_every_steps=3, gradient_clip=1.0),
        stream=StreamConfig(batch_size=24),
    )


def train(experiment: LanguageModelExperiment, folder: Path) -> tuple[Path, Progress]:
    reporter = FolderReporter(folder)
    train_here(experiment, reporter, say=lambda text: None)
    latest = reporter.latest()
    assert latest is not None
    return latest, read_progress(latest)


class KilledAfterTwo(FolderReporter):
    reports = 0

    def report(self, metrics: Mapping[str, float], write: CheckpointWriter) -> None:
        super().report(metrics, write)
        self.reports += 1
        if self.reports == 2:
            raise KeyboardInterrupt


def test_it_learns_resumes_bit_for_bit_and_comes_back_from_its_bundle(
    experiment: LanguageModelExperiment, tmp_path: Path
) -> None:
    latest, progress = train(experiment, tmp_path / "undisturbed")
    curve = [p.value for p in progress.curve if p.split == "valid" and p.metric == "perplexity" and p.task]
    assert curve[0] is not None
    assert curve[-1] is not None
    assert curve[-1] < 0.5 * curve[0] < 0.5 * 300
    text = progress.evaluations["test"]["text"]
    assert text["perplexity"] == pytest.approx(math.exp(text["cross_entropy"] or 0))
    assert any(p.split == "train" and p.metric == "perplexity" for p in progress.curve)

    with pytest.raises(KeyboardInterrupt):
        train_here(experiment, KilledAfterTwo(tmp_path / "killed"), say=lambda text: None)
    resumed, resumed_progress = train(experiment, tmp_path / "killed")
    for name, tensor in best_weights(latest).items():
        assert torch.equal(tensor, best_weights(resumed)[name]), name
    assert replace(resumed_progress, seconds=0) == replace(progress, seconds=0)

    folder = experiment.save_bundle(latest, tmp_path / "bundle")
    bundle = load_language_model(folder)
    assert bundle.metadata.metrics["test"]["text"] == text
    prompt = "item 7 follows"
    ids = torch.tensor(bundle.tokenizer.encode([prompt]))
    with torch.no_grad():
        logits = bundle.model(ids)
    assert logits.shape == (1, ids.shape[1], bundle.tokenizer.vocabulary)
    assert bundle.tokenizer.decode(ids[0].tolist()) == prompt
    with pytest.raises(BundleError, match="holds a language_model, not a ranker"):
        load_bundle(folder)
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("item", "jtem"))
    with pytest.raises(BundleError, match=r"tokenizer\.json: does not match the sha256"):
        load_language_model(folder)

    titles = [section.heading for section in run_sections(progress, experiment)]
    assert "Metrics, test split" in titles
    assert not any("Calibration" in title for title in titles)


def _joint_batches(corpus: Path, out: Path, batch_size: int) -> Path:
    """A copy whose batches of twice the size are, unshuffled, those of two workers together: each reads its own half."""
    shutil.copytree(corpus, out)
    (file,) = (out / "train").glob("*.parquet")
    rows = pq.read_table(file)
    steps = len(rows) // (2 * batch_size)
    halves = torch.arange(2 * steps * batch_size).view(2, steps, batch_size)
    pq.write_table(rows.take(halves.transpose(0, 1).flatten().numpy()), file)
    return out


def _train_as_worker(rank: int, experiment: LanguageModelExperiment, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    train_here(experiment, FolderReporter(folder / str(rank)), worker=Worker(rank, 2), say=lambda text: None)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_train_with_apollo_as_one_worker_on_the_joint_batches(corpus: Path, tmp_path: Path) -> None:
    """With clipping, accumulation, warm-up and a cosine schedule. Gradients are summed in another order, no more."""
    rows = len(pq.read_table(next((corpus / "train").glob("*.parquet")))) // 24 * 24
    even = _joint_batches(corpus, tmp_path / "even", rows // 2)  # one batch: the same order, cut to full batches
    two = LanguageModelExperiment(
        even,
        shape="micro",
        optimizer=OptimizerConfig(
            optimizer="apollo", learning_rate=1e-2, embeddings="adamw", embedding_learning_rate=1e-2,
            projection=ProjectionConfig(period=5),
        ),
        loop=LoopConfig(
            epochs=2, evaluate_every_steps=5, gradient_clip=0.5, accumulate_batches=2, warmup_steps=3,
            schedule="cosine",
        ),
        stream=StreamConfig(batch_size=12, shuffle=False),
    )  # fmt: skip
    one = replace(two, corpus=_joint_batches(even, tmp_path / "joint", 12), stream=replace(two.stream, batch_size=24))
    _, alone = train(one, tmp_path / "alone")
    torch.multiprocessing.spawn(_train_as_worker, (two, tmp_path), nprocs=2)
    latest = FolderReporter(tmp_path / "0").latest()
    assert latest is not None
    together = read_progress(latest)
    assert (together.step, together.rows) == (alone.step, alone.rows) == (20, 2 * rows)  # four projection periods
    curves = [
        [p.value for p in progress.curve if p.split == "valid" and p.task and p.metric == "cross_entropy"]
        for progress in (together, alone)
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert together.evaluations["test"]["text"] == pytest.approx(alone.evaluations["test"]["text"], rel=1e-4)


def test_an_experiment_of_language_models_is_read_back_as_one(experiment: LanguageModelExperiment) -> None:
    assert read_experiment(to_json(experiment), "a run") == experiment


@pytest.mark.parametrize("space", [find_space("language_model"), find_space("apollo")])
def test_sweep_spaces_name_fields_of_the_experiment(experiment: LanguageModelExperiment, space: SweepSpace) -> None:
    swept = apply_parameters(experiment, {path: domain.sample() for path, domain in space.of(experiment).items()})
    assert isinstance(swept, LanguageModelExperiment)
    assert swept != experiment


def test_a_folder_that_is_no_corpus_is_refused_by_name(
    experiment: LanguageModelExperiment, small_log: Path, tmp_path: Path
) -> None:
    with pytest.raises(LogError, match="not one of token blocks"):
        replace(experiment, corpus=small_log).check()
    with pytest.raises(LogError, match="not a log"):
        replace(experiment, corpus=tmp_path).check()


def test_perplexity_of_workers_is_that_of_all_their_tokens() -> None:
    losses = torch.rand(7, 5) * 6
    whole, one, other = Perplexity(), Perplexity(), Perplexity()
    whole.update(losses)
    one.update(losses[:2])
    other.update(losses[2:])
    one.load_state(one.state() + other.state())
    assert one.compute().tokens == 35
    assert one.compute().perplexity == pytest.approx(math.exp(float(losses.mean())), rel=1e-6)
    assert one.compute().perplexity == pytest.approx(whole.compute().perplexity, rel=1e-9)
    assert math.isnan(Perplexity().compute().perplexity)


def test_a_corpus_remembers_what_it_was_made_of(corpus: Path) -> None:
    details = json.loads((corpus / "import.json").read_text())
    assert sum(counts["documents"] for counts in details["text"].values()) == 240
