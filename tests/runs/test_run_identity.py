"""A run goes on with the data that it was begun on, or not at all."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rayrec.data.sequences import ItemTable, SequenceData, read_sequences, write_sequences
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.table import AnyExperiment
from rayrec.runs.run_folder import RunRecord, find_run, make_run
from rayrec.training.tracking import Tracker
from rayrec.typed_json import ConfigError
from tests.conftest import write_small_log


def begun(experiment: AnyExperiment) -> RunRecord:
    """A run called first, found again or made."""
    return find_run("first", experiment) or make_run("first", experiment, None, Tracker())


def test_a_log_that_was_moved_is_the_same_and_one_that_was_imported_anew_is_not(runs: Path, tmp_path: Path) -> None:
    experiment = RankerExperiment(write_small_log(tmp_path / "log", rows=300))
    record = begun(experiment)
    assert begun(experiment) == record
    (tmp_path / "log").rename(tmp_path / "moved")
    assert RankerExperiment(tmp_path / "moved").fingerprint() == record.data
    write_small_log(tmp_path / "log", rows=320)
    assert begun(experiment).data not in (None, record.data)  # it never trained: it does not hold its name
    (runs / "first" / "bundle").mkdir()
    shutil.rmtree(tmp_path / "log")
    (tmp_path / "moved").rename(tmp_path / "log")
    with pytest.raises(ConfigError, match=r"run 'first' was begun on other data"):
        begun(experiment)


def test_sequences_of_other_items_or_events_are_other_data(tmp_path: Path) -> None:
    from tests.tasks.test_retrieval import sequence_data  # a small catalogue

    data = sequence_data()
    experiment = RetrieverExperiment(write_sequences(tmp_path / "one", data))
    items = ItemTable.of(data.items.names.to_pylist()[::-1])
    renamed = RetrieverExperiment(write_sequences(tmp_path / "renamed", replace(data, items=items)))
    events = data.interactions.items.copy()
    events[:2] = events[1::-1]
    moved = SequenceData(replace(data.interactions, items=events), data.items, data.users)
    reordered = RetrieverExperiment(write_sequences(tmp_path / "reordered", moved))
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    assert read_sequences(tmp_path / "copy").items.fingerprint == data.items.fingerprint
    assert RetrieverExperiment(tmp_path / "copy").fingerprint() == experiment.fingerprint()
    assert len({e.fingerprint() for e in (experiment, renamed, reordered)}) == 3
