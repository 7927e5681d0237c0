"""A job that is told to write where something else is says so before it reads anything, and leaves it as it is."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import (
    build_preference_benchmark,
    bundle_item_features,
    generate_preferences,
    import_content,
    import_preferences,
    import_sequences,
    import_text,
    semantic_ids,
    tokenize_content,
)
from rayrec.data.preferences.table import read_preferences
from rayrec.data.public.content_table import OwnTables
from rayrec.data.sequences import Interactions, ItemTable, SequenceData, read_sequences, write_sequences
from rayrec.errors import UserError
from rayrec.typed_json import ConfigError

NOWHERE = Path("nowhere")
JOBS: dict[str, Callable[[Path], object]] = {
    "import_preferences": lambda out: import_preferences.run(import_preferences.Table(NOWHERE, NOWHERE, out)),
    "generate_preferences": lambda out: generate_preferences.run(
        generate_preferences.Extractive(generate_preferences.Moments(NOWHERE, out))
    ),
    "semantic_ids": lambda out: semantic_ids.run(semantic_ids.MakeSemanticIds(NOWHERE, out)),
    "build_preference_benchmark": lambda out: build_preference_benchmark.run(
        build_preference_benchmark.BuildBenchmark(NOWHERE, NOWHERE, out)
    ),
    "import_sequences": lambda out: import_sequences.run(
        import_sequences.MovieLens(NOWHERE, import_sequences.Destination(out, overwrite=True))
    ),
    "import_content": lambda out: import_content.run(
        import_content._OwnTables(NOWHERE, out, overwrite=True, reader=OwnTables())
    ),
    "tokenize_content": lambda out: tokenize_content.run(
        tokenize_content.TokenizeContent(NOWHERE, out, overwrite=True)
    ),
    "bundle_item_features": lambda out: bundle_item_features.run(
        bundle_item_features.BundleItemFeatures("item", out, table=NOWHERE, overwrite=True)
    ),
    "import_text": lambda out: import_text.run(
        import_text.ImportParquet(NOWHERE, import_text.ImportOptions(out, overwrite=True))
    ),
}


def sequences(folder: Path) -> SequenceData:
    data = SequenceData(
        Interactions(pa.array([0, 3]).to_numpy(), pa.array([1, 2, 3], pa.int32()).to_numpy(), 3),
        ItemTable.of(["a", "b", "c"]),
        pa.array(["u0"]),
    )
    write_sequences(folder, data)
    return data


@pytest.mark.parametrize("job", JOBS)
def test_no_job_replaces_a_folder_that_it_did_not_write(tmp_path: Path, job: str) -> None:
    thesis = tmp_path / "precious" / "sub" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("words")
    (tmp_path / "precious" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"precious: .*it is not overwritten"):
        JOBS[job](tmp_path / "precious")
    assert thesis.read_text() == "words"
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("job", ["import_preferences", "semantic_ids", "build_preference_benchmark"])
def test_the_sequences_that_a_job_reads_are_not_its_output(tmp_path: Path, job: str) -> None:
    data = sequences(tmp_path / "seq")
    with pytest.raises(UserError, match=r"seq: holds files and no .*it is not overwritten"):
        JOBS[job](tmp_path / "seq")
    assert read_sequences(tmp_path / "seq").users == data.users


def test_preferences_that_do_not_fit_leave_the_earlier_ones_and_those_that_do_replace_them(tmp_path: Path) -> None:
    data, good = sequences(tmp_path / "seq"), ["Find a b", "Find b c", "Find c d", "Find d e", "Find e f"]

    def imported(users: list[str], positions: list[int]) -> list[int]:
        table = {"user": users, "at": positions, "preferences": [good] * len(users)}
        pq.write_table(pa.table(table), tmp_path / "own.parquet")
        columns = import_preferences.PreferenceColumns(position="at")
        out = tmp_path / "pref"
        import_preferences.run(
            import_preferences.Table(tmp_path / "own.parquet", tmp_path / "seq", out, columns=columns)
        )
        return read_preferences(out, data).positions.tolist()

    assert imported(["u0"], [2]) == [2]
    for users, positions, told in (
        (["u0", "stranger"], [1, 1], r"own\.parquet, row 2: user 'stranger' is not in the sequences"),
        (["u0", "u0"], [1, 9], r"own\.parquet, row 2: position 9 of a history of 3 items"),
        (["u0", "u0", "u0"], [1, 2, 1], r"own\.parquet, rows 1 and 3: user 'u0' has two rows for position 1"),
    ):
        with pytest.raises(ConfigError, match=told):
            imported(users, positions)
        assert read_preferences(tmp_path / "pref", data).positions.tolist() == [2]
    assert imported(["u0", "u0"], [3, 1]) == [1, 3]
