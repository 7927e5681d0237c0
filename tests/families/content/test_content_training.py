"""Content rankers train in the one worker loop; users and candidates stand alone; what was precomputed scores the same."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import BertConfig, BertModel

from rayrec.data.content import UserTexts, read_content, write_content
from rayrec.data.content.tokens import tokenize, write_tokens
from rayrec.data.log.streams import StreamPosition
from rayrec.families.content.bundle import load_content_ranker
from rayrec.families.content.evaluation import EvaluateContent
from rayrec.families.content.experiment import ContentExperiment
from rayrec.families.table import read_experiment
from rayrec.models.content_encoder import ContentEncoder, ContentEncoderConfig
from rayrec.models.content_inputs import ContentBatch, Texts, pad_texts
from rayrec.models.content_ranker import ContentRanker
from rayrec.optim import OptimizerConfig, build_optimizer
from rayrec.runs.fitting import fit
from rayrec.text.content_tokenizer import ContentTokenizer
from rayrec.text.tokenizer import train_tokenizer
from rayrec.training.checkpoint import best_weights, read_progress
from rayrec.training.experiment import ScalingOptions, train_here
from rayrec.training.judging import judge_stream
from rayrec.training.reporters import FolderReporter
from rayrec.training.worker import Worker
from rayrec.typed_json import ConfigError, to_plain

MODELS = ("two_tower", "nrms", "miner", "spar", "embsum")


def with_model(experiment: ContentExperiment, model: Any) -> ContentExperiment:
    return replace(experiment, ranker=replace(experiment.ranker, model=model))


def with_encoder(experiment: ContentExperiment, **changes: Any) -> ContentExperiment:
    encoder = replace(experiment.ranker.encoder, **changes)
    return replace(experiment, ranker=replace(experiment.ranker, encoder=encoder))


def one_batch(experiment: ContentExperiment, split: str = "test") -> ContentBatch:
    """All impressions of a split at once."""
    wide = replace(experiment, stream=replace(experiment.stream, token_budget=10**9))
    (batch,) = wide.data(Worker()).open_evaluation(split, 1).epoch_batches()
    return batch


def fresh(experiment: ContentExperiment) -> ContentRanker:
    torch.manual_seed(0)
    return experiment.task().build().eval()


@pytest.mark.parametrize("model", MODELS)
def test_a_model_learns_all_of_32_impressions(experiment: ContentExperiment, tmp_path: Path, model: str) -> None:
    experiment = with_model(experiment, model)
    train_here(experiment, FolderReporter(tmp_path), say=lambda text: None)
    checkpoint = FolderReporter(tmp_path).latest()
    assert checkpoint is not None
    ranker = experiment.task().build()
    ranker.load_state_dict(best_weights(checkpoint))
    found = judge_stream(
        experiment.task(), ranker, experiment.data(Worker()).open_evaluation("train", 1).epoch_batches()
    )
    assert found["impressions"]["rows"] == 32
    users_without_anything = 2 if model != "spar" else 0  # one has no history; SPAR reads what was written of them
    assert found["impressions"]["auc"] >= 1.0 - users_without_anything / 32
    assert read_progress(checkpoint).evaluations["test"]["impressions"]["auc"] > 0.9

    bundle = load_content_ranker(experiment.save_bundle(checkpoint, tmp_path / "bundle"))
    batch = one_batch(experiment)
    assert torch.equal(bundle.model.scores(batch), ranker.eval().scores(batch))
    table = EvaluateContent().evaluate(tmp_path / "bundle")
    assert table.rows[0][0] == "16"


@pytest.mark.parametrize("session", [1, 2, 4])
@pytest.mark.parametrize("model", MODELS)
def test_precomputed_embeddings_score_as_end_to_end(experiment: ContentExperiment, model: str, session: int) -> None:
    experiment = with_encoder(with_model(experiment, model), session=session)
    ranker, batch = fresh(experiment), one_batch(experiment)
    inputs = experiment.inputs()
    whole = ranker.scores(batch)
    rows_of = np.argsort(inputs.log.histories.lengths, kind="stable")  # a batch's histories are sorted by length
    for row in range(len(batch)):
        user = int(batch.users[row])
        alone = inputs.batch(rows_of[user : user + 1], np.zeros(1, np.int64), *np.zeros((2, 1, 1), np.int64))
        gamma = ranker.users(alone.contents, alone.histories, alone.interests)
        candidates = batch.candidates[row][batch.candidates[row] > 0]
        lambdas = torch.cat([ranker.items(inputs.contents(batch.contents.keys[c - 1 : c].numpy())) for c in candidates])
        scores = ranker.score(gamma, lambdas.unsqueeze(0))[0]
        assert torch.allclose(scores, whole[row, : len(candidates)], atol=1e-5)


def test_the_interest_text_moves_spars_user_and_never_the_candidate(experiment: ContentExperiment) -> None:
    ranker, batch = fresh(experiment), one_batch(experiment)
    texts = batch.interests
    swapped = replace(batch, interests=Texts(texts.tokens.flip(0), texts.real.flip(0), texts.keys.flip(0)))
    users, items = ranker.embeddings(batch)
    moved, same = ranker.embeddings(swapped)
    assert torch.equal(items, same)
    changed = (batch.interests.tokens != swapped.interests.tokens).any(1)
    assert changed.any()
    assert ((users - moved).abs().amax((1, 2)) > 1e-4)[changed].all()


@pytest.mark.parametrize("model", MODELS)
def test_a_changed_candidate_never_changes_the_user(experiment: ContentExperiment, model: str) -> None:
    experiment = with_model(experiment, model)
    ranker, batch = fresh(experiment), one_batch(experiment)
    users, _ = ranker.embeddings(batch)
    other, _ = ranker.embeddings(replace(batch, candidates=batch.candidates.flip(1)))
    assert torch.allclose(users, other, atol=1e-6)


def test_sessions_are_encoded_apart_and_each_once(
    experiment: ContentExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker, batch = fresh(experiment), one_batch(experiment)
    read = []
    body = ranker.encoder.body
    forward = body.forward
    monkeypatch.setattr(body, "forward", lambda tokens, real: read.append(len(tokens)) or forward(tokens, real))
    ranker.encoder.history(batch.contents, batch.histories)
    lengths = (batch.histories > 0).sum(1)
    assert read == [int((-(-lengths // 2)).sum())]  # sessions of two: linear in the length of the history


@pytest.mark.parametrize("part", ["sparse", "summarize", "item_summary", "history"])
def test_every_part_of_spar_can_be_left_out(experiment: ContentExperiment, part: str) -> None:
    ranker = replace(experiment.ranker, spar=replace(experiment.ranker.spar, **{part: False}))
    without = replace(experiment, ranker=ranker)
    assert not torch.allclose(
        fresh(without).scores(one_batch(without)), fresh(experiment).scores(one_batch(experiment))
    )


def test_an_interrupted_epoch_goes_on_with_the_very_next_batch(experiment: ContentExperiment) -> None:
    data = experiment.data(Worker())
    whole = [batch for batch, _ in data.open_training(StreamPosition(), 1).epoch_batches()]
    assert len(whole) > 2
    rest = [batch for batch, _ in data.open_training(StreamPosition(0, 2), 1).epoch_batches()]
    assert len(rest) == len(whole) - 2
    assert all(torch.equal(a.candidates, b.candidates) for a, b in zip(whole[2:], rest, strict=True))


def test_judged_users_are_grouped_alike_for_models_that_read_more_of_a_history_in_other_batches(
    experiment: ContentExperiment,
) -> None:
    states = []
    for max_history, budget in ((2, 300), (8, 10**9)):
        wanted = replace(
            experiment,
            ranker=replace(experiment.ranker, max_history=max_history),
            stream=replace(experiment.stream, token_budget=budget),
        )
        task, batches = wanted.task(), list(wanted.data(Worker()).open_evaluation("test", 1).epoch_batches())
        assert (len(batches) > 1) == (budget == 300)
        found = task.evaluation()
        for batch in batches:
            found.update(torch.arange(batch.labels.shape[1]).expand(batch.labels.shape) * 1.0, batch)
        states.append(found.metrics.state())
        assert len({len(values) for values in found.left_out()["impressions"].values()}) == 1
    torch.testing.assert_close(states[0], states[1])


def test_batches_stay_within_the_token_budget_and_hold_each_positive_once(experiment: ContentExperiment) -> None:
    data, seen = experiment.data(Worker()), 0
    for batch, _ in data.open_training(StreamPosition(), 1).epoch_batches():
        rows, longest = batch.histories.shape
        assert rows == 1 or rows * longest * experiment.inputs().content_slots <= experiment.stream.token_budget
        assert (batch.labels[:, 0] == 1).all()
        assert ((batch.labels[:, 1:] == 0) | (batch.candidates[:, 1:] == 0)).all()
        seen += len(batch)
    assert seen == 32


def test_texts_that_were_never_tokenized_are_named(experiment: ContentExperiment) -> None:
    with pytest.raises(ConfigError, match="no user texts of version 'spoken' were tokenized; there are: written"):
        replace(experiment, interest="spoken").check()


def test_a_run_by_name_trains_in_process_and_goes_on_only_with_its_own_data(
    experiment: ContentExperiment, runs: Path, tmp_path: Path
) -> None:
    short = replace(experiment, loop=replace(experiment.loop, epochs=1)).absolute()
    finished = fit("content", short, in_process=True)
    assert finished.progress.evaluations["test"]
    assert load_content_ranker(finished.bundle).saved.items == short.inputs().log.items.fingerprint
    shutil.copytree(short.content, tmp_path / "copy")
    assert replace(short, content=tmp_path / "copy").fingerprint() == short.fingerprint()
    assert replace(short, interest=None, summary=None).fingerprint() != short.fingerprint()


@pytest.mark.parametrize(
    "change", [{"history": False}, {"summarize": False}, {"item_summary": False}, {"sparse": False}]
)
def test_every_parameter_of_every_variant_of_spar_gets_a_gradient(
    experiment: ContentExperiment, change: dict[str, bool]
) -> None:
    spar = replace(experiment.ranker.spar, **change)
    wanted = replace(experiment, ranker=replace(experiment.ranker, spar=spar))
    task = wanted.task()
    model = task.build()
    batch, _ = next(wanted.data(Worker()).open_training(StreamPosition(), 1).epoch_batches())
    task.loss(model, batch).total.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_an_experiment_of_before_the_encoder_had_its_share_of_the_rate_is_read_as_it_was_trained(
    experiment: ContentExperiment,
) -> None:
    """What was written then lacks ``rate_share`` alone; a plan names what it sets, and means today's defaults."""
    now = with_encoder(experiment, rate_share=0.5)
    plain = to_plain(now)
    assert read_experiment(json.dumps(plain), "now") == now
    del plain["ranker"]["encoder"]["rate_share"]
    assert read_experiment(json.dumps(plain), "before") == with_encoder(experiment, rate_share=1.0)
    plain["ranker"]["encoder"] = {"model": "minilm", "session": 3}
    planned = read_experiment(json.dumps(plain), "a plan")
    assert isinstance(planned, ContentExperiment)
    assert planned.ranker.encoder == ContentEncoderConfig(session=3)
    assert planned.ranker.encoder.rate_share == 0.2
    plain["ranker"]["encoder"] = {"rate": 0.2}
    with pytest.raises(ConfigError, match=r"encoder\.rate: "):
        read_experiment(json.dumps(plain), "a misspelt one")


def test_a_frozen_encoder_keeps_the_states_of_float32_whoever_asks_first(tmp_path: Path) -> None:
    """A training step in bfloat16 asks first, an evaluation in float32 later."""
    made = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(made).save_pretrained(tmp_path / "bert")
    folder, texts = str(tmp_path / "bert"), pad_texts([[1, 2, 3], [4, 5]], [7, 8])
    config, found = ContentEncoderConfig(folder, train="none", dim=8), []
    for bf16 in (False, True):
        torch.manual_seed(0)
        encoder = ContentEncoder(config, 50, folder).eval()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            encoder.texts(texts).sum().backward()
        found.append(encoder.texts(texts))
    assert torch.equal(found[0], found[1])


def test_a_pretrained_encoder_learns_at_its_share_of_the_rate(tmp_path: Path) -> None:
    made = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(made).save_pretrained(tmp_path / "bert")
    encoder = ContentEncoder(ContentEncoderConfig(str(tmp_path / "bert"), dim=8), 50, str(tmp_path / "bert"))
    config = OptimizerConfig(learning_rate=1e-2, embeddings="adamw", embedding_learning_rate=1e-3, weight_decay=0.0)
    optimizer = build_optimizer(encoder, config)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in encoder.project.parameters()} == {1e-2}
    body = dict(encoder.body.named_parameters())
    tables = {name for name in body if "embeddings.weight" in name}
    assert {rates[id(body[name])] for name in tables} == {1e-3}
    assert {rates[id(p)] for name, p in body.items() if name not in tables} == {2e-3}
    assert len(rates) == len(list(encoder.parameters()))
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    encoder.eval().texts(pad_texts([[1, 2, 3]])).square().sum().backward()
    optimizer.step()
    moved = {name: float((p - before[name]).abs().max()) for name, p in encoder.named_parameters()}
    assert moved["project.weight"] == pytest.approx(1e-2, rel=1e-3)  # AdamW's first step is the rate
    assert max(moved[f"body.{name}"] for name in body if name not in tables) == pytest.approx(2e-3, rel=1e-3)


@pytest.mark.slow
def test_two_workers_of_ray_train_make_one_model_that_a_single_worker_can_judge(
    ray_session: None, runs: Path, experiment: ContentExperiment
) -> None:
    few = replace(experiment, loop=replace(experiment.loop, epochs=3))
    finished = fit("content-two", few, ScalingOptions(workers=2))
    bundle = load_content_ranker(finished.bundle)
    found = judge_stream(few.task(), bundle.model, few.data(Worker()).open_evaluation("test", 1).epoch_batches())
    told = finished.progress.evaluations["test"]["impressions"]
    assert told["rows"] == found["impressions"]["rows"] == len(few.inputs().log.impressions.rows("test"))
    for name in ("auc", "mrr", "ndcg@5", "ndcg@10"):
        assert told[name] == pytest.approx(found["impressions"][name], abs=1e-6)


def test_tokens_that_a_model_was_not_trained_to_read_are_named(
    experiment: ContentExperiment, small_tokenizer: ContentTokenizer, tmp_path: Path
) -> None:
    log = experiment.inputs().log
    bundle = experiment.save(fresh(experiment), tmp_path / "bundle", {})
    same = write_tokens(tmp_path / "same", tokenize(log, small_tokenizer, "small", 16))
    assert EvaluateContent(tokens=same).evaluate(bundle).rows == EvaluateContent().evaluate(bundle).rows
    trained = train_tokenizer(["football cooking politics travel Title: Category: ; Likes game"] * 3, 300)
    others = (
        ContentTokenizer(trained.json, trained.separator, trained.separator, trained.vocabulary),
        replace(small_tokenizer, end=small_tokenizer.end - 1),
    )
    for i, other in enumerate(others):
        tokens = write_tokens(tmp_path / f"other-{i}", tokenize(log, other, "other", 16))
        with pytest.raises(ConfigError, match=rf"{tokens}: tokens of another tokenizer"):
            EvaluateContent(tokens=tokens).evaluate(bundle)
    user_texts = {"written": UserTexts("a template", pa.array(["Likes game game game game game."] * len(log.users)))}
    content = write_content(tmp_path / "content", replace(log, user_texts=user_texts))
    longer = write_tokens(tmp_path / "longer", tokenize(read_content(content), small_tokenizer, "small", 40))
    with pytest.raises(ConfigError, match=rf"{longer}: items of up to \d+ tokens and users' texts of up to \d+"):
        EvaluateContent(content=content, tokens=longer).evaluate(bundle)
