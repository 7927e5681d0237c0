"""Tables as people have them: blanks, quotes, times, spellings. What changes a value is declared; what is wrong is told."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.data.importing.importing import ImportOptions
from rayrec.data.importing.table import TableFiles, import_table
from rayrec.data.log import Log
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, LogSchema, SequenceFeature, TaskLabel
from rayrec.data.log.splitting import HashSplit, SplitRule

QUIET = ImportOptions(quiet=True)
CLICK = TaskLabel("click")
ALL_TRAIN = HashSplit(valid_share=0.0, test_share=0.0)


def import_text(
    tmp_path: Path,
    text: str | bytes,
    schema: LogSchema,
    split: SplitRule = ALL_TRAIN,
    name: str = "raw.csv",
    **more: Any,
) -> Log:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    files = TableFiles((tmp_path / name,))
    return Log.open(import_table(files, schema, split, tmp_path / "log", options=QUIET, **more))


def rows_of(log: Log, split: str = "train") -> list[dict[str, Any]]:
    return [row for file in log.files(split) for row in pq.read_table(file).to_pylist()]


# Blanks


def test_blanks_around_a_value_are_no_part_of_it_so_that_missing_values_match(tmp_path: Path) -> None:
    schema = LogSchema(
        "shop",
        (
            CategoricalFeature("country", missing_values=("?",)),
            CategoricalFeature("user", encoding="hash", buckets=100, missing_values=(" ?",)),
            SequenceFeature("viewed"),
            DenseFeature("price"),
        ),
        (CLICK,),
    )
    text = "country,user,viewed,price,click\n de, u1,a | b, 1.5, 1\n ?,?,b|a , 2,0\nde,u1,a|b,3,0\n"
    log = import_text(tmp_path, text, schema)
    assert [feature.vocabulary for feature in (*log.schema.categorical[:1], *log.schema.sequences)] == [
        ("de",),
        ("a", "b"),
    ]
    first, second, third = rows_of(log)
    assert (first["country"], second["country"], second["user"]) == (1, 0, 0)
    assert first | {"price": 3.0, "click": 0.0} == third


def test_a_split_by_user_keeps_a_user_together_whose_name_has_blanks_in_places(tmp_path: Path) -> None:
    schema = LogSchema("shop", (CategoricalFeature("user"),), (CLICK,))
    lines = [f"{blank}u{user},{user % 2}" for user in range(40) for blank in ("", " ")]
    log = import_text(tmp_path, "user,click\n" + "\n".join(lines), schema, HashSplit(columns=("user",)))
    assert [log.rows(split) % 2 for split in ("train", "valid", "test")] == [0, 0, 0]


def test_schemas_and_logs_of_version_1_keep_the_blanks_that_their_models_know(tmp_path: Path) -> None:
    schema = LogSchema("shop", (CategoricalFeature("country"),), (CLICK,), version=1)
    log = import_text(tmp_path, "country,click\n de,1\nde,0\n", schema)
    assert log.schema.categorical[0].vocabulary == (" de", "de")
    assert log.schema.version == 1
    assert pa.table({"id": [row["country"] for row in rows_of(log)]}).column("id").to_pylist() == [1, 2]
