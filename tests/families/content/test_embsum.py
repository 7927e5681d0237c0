"""EmbSum's summaries: their loss trains the encoder, they are no input, and their last state is one, taught or decoded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from rayrec.data.content import UserTexts, write_content
from rayrec.data.content.tokens import tokenize, write_tokens
from rayrec.families.content.experiment import ContentExperiment
from rayrec.metrics.rouge import rouge
from rayrec.models.content_encoder import History
from rayrec.models.content_inputs import ContentBatch
from rayrec.models.embsum import Embsum
from rayrec.text.content_tokenizer import ContentTokenizer
from rayrec.typed_json import ConfigError
from tests.families.content.conftest import TOPICS, WORDS, small_experiment, small_log
from tests.families.content.test_content_training import fresh, one_batch


def embsum(experiment: ContentExperiment, **changes: float) -> tuple[Embsum, ContentBatch]:
    settings = replace(experiment.ranker.embsum, **changes)
    experiment = replace(experiment, ranker=replace(experiment.ranker, model="embsum", embsum=settings))
    ranker = fresh(experiment)
    assert isinstance(ranker, Embsum)
    return ranker, one_batch(experiment)


def test_the_gradient_of_the_summary_loss_reaches_the_encoder(experiment: ContentExperiment) -> None:
    ranker, batch = embsum(experiment)
    ranker.losses(batch)["summary"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in ranker.encoder.body.parameters())
    assert all(p.grad is None for p in ranker.relevance.parameters())


def test_without_weight_there_is_no_decoder_and_no_summary_loss(experiment: ContentExperiment) -> None:
    ranker, batch = embsum(experiment, summary_weight=0.0)
    assert ranker.decoder is None
    assert set(ranker.losses(batch)) == {"nce"}


def test_the_loss_is_nce_plus_lambda_times_the_summary_loss(experiment: ContentExperiment) -> None:
    ranker, batch = embsum(experiment)
    task = replace(experiment, ranker=replace(experiment.ranker, model="embsum")).task()
    parts = task.loss(ranker, batch).parts
    assert float(parts["loss"]) == pytest.approx(float(parts["nce"]) + 0.05 * float(parts["summary"]), rel=1e-6)


def test_shares_of_an_update_add_up_to_the_loss_of_the_joint_batch(experiment: ContentExperiment) -> None:
    ranker, batch = embsum(experiment)
    task = replace(experiment, ranker=replace(experiment.ranker, model="embsum")).task()
    halves = [
        replace(batch, **{name: getattr(batch, name)[rows] for name in ("users", "candidates", "labels")})
        for rows in (slice(0, 5), slice(5, None))
    ]
    joint = torch.stack([task.sizes(ranker, half) for half in halves]).mean(0)
    parts = [task.loss(ranker, half, joint_sizes=joint).total for half in halves]
    assert torch.allclose(torch.stack(parts).mean(), task.loss(ranker, batch).total, atol=1e-6)


def test_a_summary_is_a_target_and_never_an_input_of_scores(experiment: ContentExperiment) -> None:
    ranker, batch = embsum(experiment)
    other = replace(batch, summaries=replace(batch.summaries, tokens=batch.summaries.tokens.flip(0)))
    assert torch.equal(ranker.scores(batch), ranker.scores(other))
    assert not torch.equal(ranker.losses(batch)["summary"], ranker.losses(other)["summary"])


def test_the_state_of_a_greedy_decode_is_that_of_teaching_what_it_wrote(experiment: ContentExperiment) -> None:
    ranker, batch = embsum(experiment)
    history = ranker.encoder.history(batch.contents, batch.histories)
    written = ranker.write(history)
    ends = written.tokens == ranker.end
    lengths = torch.where(ends.any(1), ends.int().argmax(1) + 1, written.tokens.shape[1])  # the end token included
    tokens = torch.cat([torch.full((len(lengths), 1), ranker.start), written.tokens], 1)
    real = torch.arange(tokens.shape[1]) <= lengths.unsqueeze(1)
    last, _ = ranker._taught(history, replace(batch.summaries, tokens=tokens, real=real))
    assert torch.allclose(last, written.last, atol=1e-5)


def test_padding_of_a_grid_moves_neither_summary_nor_user(experiment: ContentExperiment) -> None:
    ranker, batch = embsum(experiment)
    history = ranker.encoder.history(batch.contents, batch.histories)
    pad = torch.nn.functional.pad
    wider = History(
        pad(history.states, (0, 0, 0, 3, 0, 2), value=7.0), pad(history.real, (0, 3, 0, 2)), pad(history.there, (0, 2))
    )
    nothing = torch.zeros(len(history.there), 0)
    users = [ranker.users_of(h, nothing.unsqueeze(2), nothing.bool()) for h in (history, wider)]
    assert torch.allclose(*users, atol=1e-5)


def test_what_is_written_of_a_user_depends_on_that_users_history_alone(experiment: ContentExperiment) -> None:
    ranker, batch = embsum(experiment)
    history = ranker.encoder.history(batch.contents, batch.histories)
    states = history.states.detach().requires_grad_()
    tokens = torch.full((len(states), 3), ranker.end)
    summaries = replace(batch.summaries, tokens=tokens, real=torch.ones_like(tokens, dtype=torch.bool))
    ranker.zero_grad()
    last, loss = ranker._taught(replace(history, states=states), summaries)
    (of_loss,) = torch.autograd.grad(loss, states, retain_graph=True)
    (of_one,) = torch.autograd.grad(last[2].sum(), states)
    known = history.there.any(1)
    assert (of_loss.abs().amax((1, 2, 3)) > 0)[known].all()
    assert of_loss[known][~history.real[known]].abs().max() == 0  # of padding
    assert of_one[2].abs().max() > 0
    assert of_one[torch.arange(len(states)) != 2].abs().max() == 0


def test_taught_eight_users_texts_it_writes_each_its_own(tmp_path: Path, small_tokenizer: ContentTokenizer) -> None:
    """At lambda = .05 beside the loss of ranking, as in training: whatever it writes of a user it knows from the history."""
    log, users = small_log(), np.asarray([user for user in range(9) if user != 3])  # who has no history
    texts = [f"Likes {TOPICS[u % 4]}, {WORDS[u]} {WORDS[-1 - u]} {WORDS[u // 2]}." if u < 9 else "" for u in range(16)]
    log = log.with_texts("own", UserTexts("a test", pa.array(texts)))
    tokens = write_tokens(tmp_path / "tokens", tokenize(log, small_tokenizer, "small", 40))
    experiment = small_experiment((write_content(tmp_path / "log", log), tokens))
    embsum = replace(experiment.ranker.embsum, max_summary=40, decoder_dropout=0.0)
    ranker_config = replace(experiment.ranker, model="embsum", embsum=embsum)
    experiment = replace(experiment, interest=None, summary="own", ranker=ranker_config)
    experiment.check()
    ranker, task, shown = fresh(experiment).train(), experiment.task(), log.impressions
    assert isinstance(ranker, Embsum)
    rows = np.asarray([next(row for row in shown.rows("train") if shown.history[row] == user) for user in users])
    candidates, labels = shown.candidates.padded(rows), shown.labels.padded(rows, padding=-1)
    order = np.argsort(-labels, axis=1, kind="stable")  # the one positive comes first
    candidates, labels = (np.take_along_axis(one, order, 1) for one in (candidates, labels))
    batch = experiment.inputs().batch(users, np.arange(8), candidates, labels)
    optimizer = torch.optim.Adam(ranker.parameters(), 5e-3)
    for _ in range(200):
        optimizer.zero_grad()
        task.loss(ranker, batch).total.backward()
        optimizer.step()
    written = ranker.eval().write(ranker.encoder.history(batch.contents, batch.histories)).tokens.tolist()
    scores = [rouge(small_tokenizer.decode(ids), texts[u])["rougeL"] for u, ids in zip(users, written, strict=True)]
    assert min(scores) > 0.9


def test_summaries_that_would_be_cut_before_their_end_are_refused(experiment: ContentExperiment) -> None:
    longest = int(experiment.inputs().tokens.user_texts["written"].lengths.max()) - 2
    settings = replace(experiment.ranker, model="embsum")
    replace(experiment, ranker=replace(settings, embsum=replace(settings.embsum, max_summary=longest))).check()
    short = replace(settings, embsum=replace(settings.embsum, max_summary=longest - 1))
    with pytest.raises(
        ConfigError, match=f"max_summary is {longest - 1}, summaries 'written' have up to {longest} tokens"
    ):
        replace(experiment, ranker=short).check()


def test_summaries_must_be_named_when_they_are_to_be_learned(experiment: ContentExperiment) -> None:
    with pytest.raises(ConfigError, match="name a version of user texts"):
        replace(experiment, summary=None, ranker=replace(experiment.ranker, model="embsum")).check()
