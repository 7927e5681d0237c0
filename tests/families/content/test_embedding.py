"""Embeddings that are written ahead: equal to the model's own, resumable, put in force whole, checked when they are read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.embed_content_items import EmbedContentItems, ShardWriter
from jobs.embed_content_items import run as embed_items
from jobs.embed_users import EmbedUsers
from jobs.embed_users import run as embed_users
from rayrec.data.content import UserTexts, write_content
from rayrec.data.content.embeddings import StoredEmbeddings, pointer_to, put_in_force, write_shard
from rayrec.data.content.tokens import tokenize, write_tokens
from rayrec.families.content.bundle import ContentBundle, load_content_ranker
from rayrec.families.content.embedding import ContentEmbedder
from rayrec.families.content.experiment import ContentExperiment
from rayrec.text.content_tokenizer import ContentTokenizer
from rayrec.typed_json import ConfigError
from tests.families.content.conftest import small_log


def untrained(experiment: ContentExperiment, folder: Path, model: str, seed: int = 0) -> ContentBundle:
    torch.manual_seed(seed)
    experiment = replace(experiment, ranker=replace(experiment.ranker, model=model))
    return load_content_ranker(experiment.save(experiment.task().build(), folder, {}))


@pytest.mark.parametrize("model", ["two_tower", "nrms", "miner", "spar", "embsum"])
def test_embeddings_made_ahead_score_as_end_to_end(experiment: ContentExperiment, tmp_path: Path, model: str) -> None:
    bundle = untrained(experiment, tmp_path / "bundle", model)
    inputs = experiment.inputs()
    log, tokens, shown = inputs.log, inputs.tokens, inputs.log.impressions
    embedder = ContentEmbedder(bundle, token_budget=60)
    items = embedder.items([tokens.items[row].tolist() for row in range(len(log.items))])
    read = [[tokens.items[i - 1].tolist() for i in log.histories[log.current[u]]] for u in range(len(log.users))]
    interests = [tokens.user_texts["written"][u].tolist() for u in range(len(log.users))]
    users, summaries = embedder.users(read, interests)
    rows = shown.rows("test")
    histories, places = np.unique(shown.history[rows], return_inverse=True)
    candidates = shown.candidates.padded(rows)
    batch = inputs.batch(histories, places, candidates, np.ones_like(candidates))
    with torch.inference_mode():
        wanted = bundle.model.scores(batch)
        own = torch.from_numpy(log.owners[shown.history[rows]])
        found = bundle.model.score(users[own], items[torch.from_numpy(candidates - 1).clamp_min(0)])
    real = torch.from_numpy(candidates > 0)
    torch.testing.assert_close(found[real], wanted[real], atol=1e-5, rtol=1e-5)
    assert any(summaries) == (model == "embsum")
    alone, text = embedder.users(read[2:3], interests[2:3])
    torch.testing.assert_close(alone[0], users[2], atol=1e-5, rtol=1e-5)
    assert text == summaries[2:3]


def test_both_jobs_go_on_where_they_were_and_put_a_new_day_in_force_whole(
    experiment: ContentExperiment, tmp_path: Path, small_tokenizer: ContentTokenizer,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    bundle, out = untrained(experiment, tmp_path / "bundle", "embsum"), tmp_path / "embeddings"
    common = (str(bundle.path), experiment.content, experiment.tokens, out)
    items = EmbedContentItems(*common, shard=10, encoders=0)
    record = embed_items(items)
    users = embed_users(EmbedUsers(*common, shard=5, encoders=0))
    assert (record.rows, record.shards, users.rows, users.shards) == (32, 4, 16, 4)
    stored, people = StoredEmbeddings(out, bundle.weights, "items"), StoredEmbeddings(out, bundle.weights, "users")
    inputs, embedder = experiment.inputs(), ContentEmbedder(bundle)
    wanted = embedder.items([inputs.tokens.items[row].tolist() for row in (31, 0, 12)])
    torch.testing.assert_close(stored.rows(np.array([31, 0, 12])), wanted, atol=1e-5, rtol=1e-5)
    assert stored.tokens(12) == inputs.tokens.items[12].tolist()
    assert (stored.numbers["n31"], people.names[3], people.column("interest", 4)) == (31, "u3", "Likes football.")
    assert people.column("summary", 0)

    before = stored.rows(np.arange(32))
    parts = sorted(record.folder(out).glob("*.safetensors"))
    times = [part.stat().st_mtime_ns for part in parts]
    parts[2].unlink()
    capsys.readouterr()
    embed_items(items)
    assert "1 of 4 shards now" in capsys.readouterr().out
    assert [part.stat().st_mtime_ns == then for part, then in zip(parts, times, strict=True)] == [
        True,
        True,
        False,
        True,
    ]
    assert torch.equal(StoredEmbeddings(out, bundle.weights, "items").rows(np.arange(32)), before)

    folder, days = write_content(tmp_path / "tomorrow", small_log(seed=1)), [record]
    tokens = write_tokens(tmp_path / "tokens", tokenize(small_log(seed=1), small_tokenizer, "small", 16))
    days.append(embed_items(replace(items, content=folder, tokens=tokens)))
    new = StoredEmbeddings(out, bundle.weights, "items")
    assert new.record.source != record.source
    assert torch.equal(stored.rows(np.arange(32)), before)  # whoever has the old day mapped goes on with it
    assert all(day.folder(out).is_dir() for day in days)


@pytest.mark.slow
def test_ray_data_writes_the_same_embeddings(ray_session: None, experiment: ContentExperiment, tmp_path: Path) -> None:
    bundle, found = untrained(experiment, tmp_path / "bundle", "spar"), []
    for encoders in (0, 2):
        out = tmp_path / f"by-{encoders}"
        common = (str(bundle.path), experiment.content, experiment.tokens, out, 10, encoders, 0.1)
        embed_items(EmbedContentItems(*common))
        embed_users(EmbedUsers(*common))
        stored = (StoredEmbeddings(out, bundle.weights, "items"), StoredEmbeddings(out, bundle.weights, "users"))
        found.append([part for one in stored for _, part in one.parts()])
    assert len(found[0]) == len(found[1]) == 6
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)


def test_what_does_not_belong_to_the_model_is_named(
    experiment: ContentExperiment, tmp_path: Path, small_tokenizer: ContentTokenizer
) -> None:
    bundle, out = untrained(experiment, tmp_path / "bundle", "spar"), tmp_path / "embeddings"
    with pytest.raises(ConfigError, match=r"items\.json: no such file; make .* jobs\.embed_content_items"):
        StoredEmbeddings(out, bundle.weights, "items")
    command = EmbedUsers(str(bundle.path), experiment.content, experiment.tokens, out, shard=9)
    record = ContentEmbedder(bundle).record("users", experiment.inputs(), bundle.weights, 9)
    writer = ShardWriter(command, record, "written")
    writer.write(0)
    with pytest.raises(ConfigError, match="1 of 2 shards are not written"):
        put_in_force(out, record)
    writer.write(1)
    put_in_force(out, record)
    assert len(StoredEmbeddings(out, bundle.weights, "users")) == 16
    write_shard(record.folder(out), 1, torch.zeros(7, 3, 24), pa.table({"name": ["x"] * 7}))
    with pytest.raises(ConfigError, match=r"part-00001.*\(7, 3, 24\).*expected \(7, 4, 24\)"):
        StoredEmbeddings(out, bundle.weights, "users")
    pointer_to(out, bundle.weights, "users").write_text("{")
    with pytest.raises(ConfigError, match=r"users\.json"):
        StoredEmbeddings(out, bundle.weights, "users")
    longer = small_log().with_texts("long", UserTexts("a test", pa.array(["Likes football games. " * 9] * 16)))
    folder = write_content(tmp_path / "log", longer)
    tokens = write_tokens(tmp_path / "tokens", tokenize(longer, small_tokenizer, "small", 64))
    with pytest.raises(ConfigError, match="reads up to"):
        embed_users(replace(command, content=folder, tokens=tokens, interest="long"))
