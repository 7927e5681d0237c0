"""Text features of a log, which rankers do not read: said before training."""

from pathlib import Path

import pytest

from rayrec.data.importing.importing import ImportOptions
from rayrec.data.importing.table import TableFiles, import_table
from rayrec.data.log.schema import DenseFeature, LogSchema, TaskLabel, TextFeature
from rayrec.data.log.splitting import HashSplit
from rayrec.families.ranker.experiment import RankerExperiment


def test_text_that_a_ranker_does_not_read_is_said_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = LogSchema("shop", (TextFeature("query"), DenseFeature("price")), (TaskLabel("click"),))
    (tmp_path / "shop.csv").write_text("query,price,click\n" + "".join(f"shoes {i},{i},{i % 2}\n" for i in range(50)))
    files, options = TableFiles((tmp_path / "shop.csv",)), ImportOptions(quiet=True)
    log = import_table(files, schema, HashSplit(), tmp_path / "log", options=options)
    RankerExperiment(log).check()
    assert "a ranker does not read text: query" in capsys.readouterr().err
    RankerExperiment(log, ignored_features=("query",)).check()
    assert capsys.readouterr().err == ""
