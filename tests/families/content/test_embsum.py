"""EmbSum's summaries: their loss trains the encoder, they are no input, and their last state is one, taught or decoded."""

from dataclasses import replace

import pytest
import torch

from rayrec.families.content.experiment import ContentExperiment
from rayrec.models.content_encoder import History
from rayrec.models.content_inputs import ContentBatch
from rayrec.models.embsum import Embsum
from rayrec.typed_json import ConfigError
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


def test_summaries_must_be_named_when_they_are_to_be_learned(experiment: ContentExperiment) -> None:
    with pytest.raises(ConfigError, match="name a version of user texts"):
        replace(experiment, summary=None, ranker=replace(experiment.ranker, model="embsum")).check()
