"""The study of cold items: its intervals by hand, and a draw from split to table on a small catalogue."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp

from rayrec.data.sequences import leave_one_out, read_sequences, write_sequences
from rayrec.data.sequences.item_embeddings import EmbeddingRecord, open_embeddings, text_hash, write_shard
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.split_config import SplitConfig
from rayrec.typed_json import ConfigError, to_plain
from studies.cold_items import UNTRAINED, ColdItems, clustered_mean, run, table
from tests.tasks.test_retrieval import ITEMS, experiment, sequence_data


def test_an_interval_over_clusters_of_one_is_the_t_interval() -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, 30)
    mean, low, high = clustered_mean(values, np.arange(30))
    wanted = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((values.mean(), wanted.low, wanted.high))


def test_what_hangs_together_in_clusters_counts_once() -> None:
    values = np.random.default_rng(1).normal(0.0, 1.0, 12)
    plain = clustered_mean(values, np.arange(12))
    copied = clustered_mean(np.repeat(values, 5), np.repeat(np.arange(12), 5))
    assert copied == pytest.approx(plain)
    assert clustered_mean(np.repeat(values, 5), np.arange(60))[1] > plain[1]  # taken for 60 of their own: too narrow


def with_dense(base: RetrieverExperiment) -> RetrieverExperiment:
    """The depth retriever's dense head too."""
    return replace(base, retrieval=replace(base.retrieval, depth=replace(base.retrieval.depth, dense_weight=0.5)))


def test_a_draw_holds_items_out_trains_without_them_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = sequence_data()
    sequences = write_sequences(tmp_path / "sequences", data)
    torch.manual_seed(0)
    record = EmbeddingRecord("random", 8, ITEMS, ITEMS, text_hash(data.items.texts), data.items.fingerprint)
    open_embeddings(tmp_path / "embeddings", record)
    write_shard(tmp_path / "embeddings", 0, torch.randn(ITEMS, 8).numpy())
    base = tmp_path / "base.json"
    base.write_text(json.dumps(to_plain(with_dense(experiment((sequences, tmp_path / "none"), "liger", epochs=1)))))
    command = ColdItems(
        base,
        tmp_path / "embeddings",
        tmp_path / "cold",
        1,
        0.3,
        ("dense", "liger-neighbours", "depth", "depth-text"),
        neighbours=4,
    )
    found = run(command)
    assert set(found) == {
        f"{name}/{protocol}" for protocol in ("ranked", "excluded")
        for name in (
            UNTRAINED, f"{UNTRAINED} + bonus", "dense", "dense + text", "dense + bonus", "dense + text + bonus",
            "liger-neighbours + text + bonus, hybrid",
            *(f"liger-neighbours + {part}, dense" for part in ("text", "bonus", "text + bonus")),
            *(f"{arm}, {m}" for arm in ("liger-neighbours", "depth", "depth-text") for m in ("dense", "generative", "hybrid")),
        )
    }  # fmt: skip
    drawn = read_sequences(tmp_path / "cold" / "draw-0" / "sequences").interactions
    seen = leave_one_out(drawn).seen
    assert (~seen[1:]).sum() >= 2 + round(0.3 * 28)
    whole, last = data.interactions, data.interactions.offsets[1:] - 1
    assert drawn.num_users < whole.num_users  # so that a draw's rows are other users than the base's
    for draws in found.values():
        ranks = draws[0]
        assert len(ranks["user"]) == drawn.num_users
        assert (np.diff(ranks["user"]) > 0).all()
        assert np.array_equal(whole.items[last[ranks["user"]]], ranks["target"])
        assert np.array_equal(ranks["cold"] == 1, ~seen[ranks["target"]])
    assert (found["liger-neighbours, hybrid/ranked"][0]["rank"][~seen[ranks["target"]]] <= 10).any()
    lines = table(found, "excluded")
    hits = found["dense/excluded"][0]
    cold = hits["cold"] == 1
    (line,) = [line for line in lines if line.startswith("| dense |")]
    assert f"| 1 | {cold.sum()} | {(hits['rank'][cold] <= 10).mean():.4f} (" in line
    capsys.readouterr()
    again = run(command)
    assert "done" not in capsys.readouterr().out
    assert all(np.array_equal(again[way][0]["rank"], draws[0]["rank"]) for way, draws in found.items())
    file = tmp_path / "cold" / "draw-0" / "untrained.npz"
    with np.load(file) as stored:
        before = dict(stored)
    np.savez(file, **{name: column[::-1] for name, column in before.items()})
    with pytest.raises(ConfigError, match=r"untrained\.npz: made by an earlier version; remove it"):
        run(command)
    np.savez(file, **before)
    with pytest.raises(ConfigError, match=r"results here were made with share 0\.3, now 0\.4; neighbours 4, now 8"):
        run(replace(command, share=0.4, neighbours=8, draws=2))
    base.write_text(json.dumps(to_plain(with_dense(experiment((sequences, tmp_path / "none"), "liger", epochs=2)))))
    with pytest.raises(ConfigError, match=r"base\.loop\.epochs 1, now 2"):
        run(command)
    by_time = replace(experiment((sequences, tmp_path / "none"), "liger"), split=SplitConfig("temporal", 5, 9))
    base.write_text(json.dumps(to_plain(by_time)))
    with pytest.raises(ConfigError, match=r"base\.json: split\.method must be leave_one_out"):
        run(command)
