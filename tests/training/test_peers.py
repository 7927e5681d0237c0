"""The study that compares rankers with other libraries: equal budgets, chosen on validation, nothing done twice."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from rayrec.data.log import Log, LogWriter
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, DenseStatistics, LogSchema, TaskLabel
from rayrec.typed_json import ConfigError
from studies.peer_models import Draw, Rows, Settings
from studies.peers import Peers, Rayrec, judged_arm, lines, rows_of


@dataclass
class Shifted:
    """Knows the true logit but for a shift, its setting."""

    fits: list[tuple[float, int]] = field(default_factory=list)
    shift_by: float = 0.0

    def sample(self, draw: Draw) -> Settings:
        return {"shift": float(draw.normal()) + self.shift_by}

    def fit(self, rows: Rows, settings: Settings, seed: int) -> Callable[[str], NDArray[np.float64]]:
        self.fits.append((settings["shift"], seed))
        return lambda split: rows.splits[split].dense[:, 0].double().numpy() + settings["shift"] + 0.01 * seed


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks; the logit of the first is the number, that of the second its opposite."""
    folder, generator = tmp_path_factory.mktemp("peers") / "log", np.random.default_rng(0)
    features = (
        DenseFeature("logit", statistics=DenseStatistics(0.0, 1.5, 0.0, tuple(i / 8 - 4.0 for i in range(65)))),
        CategoricalFeature("item", vocabulary=("a", "b")),
    )
    with LogWriter(folder, LogSchema("two", features, (TaskLabel("away"), TaskLabel("click")))) as writer:
        for split, rows in (("train", 4000), ("valid", 2000), ("test", 2000)):
            logit = generator.normal(scale=1.5, size=rows)
            click = generator.random(rows) < 1 / (1 + np.exp(-logit))
            item = pa.array(generator.integers(1, 3, rows), pa.int32())
            labels = {"away": pa.array(1.0 - click, pa.float32()), "click": pa.array(click, pa.float32())}
            writer.write(split, pa.table({"logit": pa.array(logit, pa.float32()), "item": item, **labels}))
        writer.finish({"importer": "test"})
    return folder


def test_an_arm_is_judged_with_what_validation_chose_once_for_each_seed(log: Path, tmp_path: Path) -> None:
    rows, peer = rows_of(Log.open(log), "click"), Shifted()
    command = Peers(("kuairand",), tmp_path, trials=6, seeds=(0, 1, 2))
    runs = judged_arm(command, "kuairand", "LightGBM", peer, rows)
    shifts = [shift for shift, _ in peer.fits[:6]]
    nearest = min(shifts, key=abs)
    assert abs(nearest) < 0.5 < max(map(abs, shifts))
    assert peer.fits[6:] == [(nearest, 0), (nearest, 1), (nearest, 2)]
    assert [run["seed"] for run in runs] == [0, 1, 2]
    probability = 1 / (1 + np.exp(-(rows.splits["test"].dense[:, 0].double().numpy() + nearest)))
    label = rows.splits["test"].labels[:, 0].numpy()
    expected = -np.where(label == 1, np.log(probability), np.log1p(-probability)).mean()
    assert runs[0]["test"]["log_loss"] == pytest.approx(expected, abs=1e-5)

    assert judged_arm(command, "kuairand", "LightGBM", peer, rows) == runs
    assert len(peer.fits) == 9  # nothing again
    peer.shift_by = 1.0
    with pytest.raises(ConfigError, match=r"LightGBM, trial 0, was made with shift .*, now .*: choose another folder"):
        judged_arm(command, "kuairand", "LightGBM", peer, rows)
    fewer = replace(rows, splits={name: batch[slice(0, 1000)] for name, batch in rows.splits.items()})
    with pytest.raises(ConfigError, match=r"results here were made with rows\.train 4000, now 1000"):
        judged_arm(command, "kuairand", "other", peer, fewer)
    peer.shift_by = 0.0
    more = judged_arm(replace(command, trials=7), "kuairand", "other", peer, rows)
    assert len(peer.fits) == 9 + 7 + 3
    again = [{**run, "arm": "other"} for run in runs]
    table = lines("kuairand", {"LightGBM": runs, "other": again, "more": more})
    assert table[2].count("less LightGBM +0.0000 (+0.0000 to +0.0000)") == 2
    assert table[1].count("less") == 0


@pytest.mark.parametrize("bins", [(), (8, 16)])
def test_ours_learns_the_one_task_and_tells_the_logits_of_the_rows_in_their_order(
    log: Path, bins: tuple[int, ...]
) -> None:
    ours, rows = Rayrec(log, "click", epochs=3, bins=bins), rows_of(Log.open(log), "click")
    settings = {**ours.sample(np.random.default_rng(0)), "learning_rate": 1e-2, "batch_size": 256, "dropout": 0.0}
    assert ours.experiment(settings, 0).ranking.architecture.dense_bins in (bins or (0,))
    logits = ours.fit(rows, settings, 0)("test")
    assert np.corrcoef(logits, rows.splits["test"].dense[:, 0].numpy())[0, 1] > 0.95


def test_a_log_with_sequences_is_refused(small_log: Path) -> None:
    with pytest.raises(ConfigError, match="has sequence features, which the peers do not read"):
        rows_of(Log.open(small_log), "click")
