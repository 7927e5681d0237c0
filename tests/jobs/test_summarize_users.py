"""Three ways to texts of users; each adds a labelled version to a content log."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.summarize_users import Extractive, Llm, Table, Target, run
from rayrec.data.content import ContentLog, ItemTexts, Lists, TextField, read_content, write_content
from rayrec.data.content.drawing import gather
from rayrec.text.asking import AnswerError
from rayrec.text.chat_endpoint import EndpointConfig
from rayrec.text.user_interests import checked_interest, extractive_interests
from rayrec.typed_json import ConfigError
from tests.families.content.conftest import small_log
from tests.llm_stub import Stub, running_stub, said

GOOD = "Cares about football games and teams. Follows wins. Reads little else."


@pytest.fixture
def stub() -> Iterator[Stub]:
    with running_stub() as found:
        yield found


@pytest.fixture
def content(tmp_path: Path) -> Path:
    return write_content(tmp_path / "log", small_log())


def test_extractive_interests_name_what_tells_a_user_from_the_others() -> None:
    texts = extractive_interests(
        ["the red dragon film and a dragon war, film", "a space film, space travel in the film", "the of and", ""], 1
    )
    assert "dragon" in texts[0]
    assert "space" in texts[1]
    assert texts[0].startswith("Interested in ")
    assert texts[0].split("Interested in ")[1].split(" and ")[0].split(",")[0] != "film"
    assert texts[2:] == ["", ""]
    assert extractive_interests(["", ""]) == ["", ""]


def test_a_models_text_is_one_line_and_lists_are_refused() -> None:
    assert checked_interest(f"```\n{GOOD}\n```") == checked_interest(f' "{GOOD}"\n') == GOOD
    for answer in ("- a b c d\n- e f g h", "too short", "word " * 151):
        with pytest.raises(AnswerError):
            checked_interest(answer)


def test_extractive_texts_become_a_version_of_the_log(content: Path) -> None:
    place = run(Extractive(Target(content, "phrases", newest=5)))
    assert place is not None
    texts = read_content(content).user_texts["phrases"]
    assert texts.generator == "extractive"
    assert "newest 5" in texts.notes
    written = texts.texts.to_pylist()
    assert written[3] == ""  # a user without a history
    assert "football" in written[0]
    with pytest.raises(ConfigError, match="'phrases' are there already"):
        run(Extractive(Target(content, "phrases")))


def test_an_endpoint_is_asked_once_a_user_and_what_it_refuses_to_obey_is_asked_again(
    content: Path, stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = EndpointConfig(stub.url, "small-model")
    dry = Llm(Target(content, "asked", newest=3), endpoint, dry_run=True, shown=1)
    assert run(dry) is None
    assert not stub.seen
    shown = capsys.readouterr().out
    assert "15 users with a history" in shown
    assert "in three sentences" in shown
    real = Llm(Target(content, "asked", newest=3), endpoint)
    stub.behaviours["*"] = lambda handler, question, before: said("- one\n- two" if not before else GOOD)(
        handler, question, before
    )
    run(real)
    assert "15 of 15: 30 paid, 0 known, 15 refused, 30 requests, " in capsys.readouterr().out
    texts = read_content(content).user_texts["asked"]
    assert texts.generator == "an LLM (small-model), prompt interest.v1"
    assert [text for text in texts.texts.to_pylist() if text] == [GOOD] * 15
    paid = stub.paid.copy()
    run(Llm(Target(content, "again", newest=3), endpoint, cache=content.with_name("log.asked.answers.db")))
    assert stub.paid == paid  # nothing is paid twice


def test_texts_from_elsewhere_keep_their_author(
    content: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"user": ["u2", "stranger"], "text": ["Likes travel.", "x"]}), tmp_path / "t.parquet")
    run(Table(Target(content, "given"), tmp_path / "t.parquet", "a friend", "from memory"))
    texts = read_content(content).user_texts["given"]
    assert (texts.generator, texts.notes, texts.texts[2].as_py()) == ("a friend", "from memory", "Likes travel.")
    assert "1 texts of users who are not in the log" in capsys.readouterr().out
    (tmp_path / "t.csv").write_text("user,words\nu1,x\n")
    with pytest.raises(ConfigError, match="column 'text' is missing; found user, words"):
        run(Table(Target(content, "other"), tmp_path / "t.csv", "a friend"))


def test_texts_for_a_study_know_nothing_of_what_it_judges(tmp_path: Path) -> None:
    """Of likes in their order in time, the current history holds the item to be found; the one before the split does not."""
    words = ["apple", "banana", "cherry", "damson"]
    items = ItemTexts.of(words, (TextField("title", "Title", 4),), {"title": [f"{word} {word}" for word in words]})
    histories = Lists.of([[1], [2, 1], [3, 2, 1], [4, 3, 2, 1], [2]])
    rows = [("train", 0, [2, 4], [1, 0]), ("valid", 1, [3, 4], [1, 0]), ("test", 2, [4, 1], [1, 0])]
    log = ContentLog(
        items, pa.array(["u0", "u1"]), np.asarray([3, 4]), np.asarray([0, 0, 0, 0, 1]), histories, gather(rows)
    )
    assert log.histories_before("test").tolist() == [2, -1]
    assert log.histories_before("valid").tolist() == [1, -1]
    place = write_content(tmp_path / "log", log)
    for version, before, known in (("now", None, 4), ("t", "test", 3), ("v", "valid", 2)):
        run(Extractive(Target(place, version, before), sentences=9))
        texts = read_content(place).user_texts[version]
        assert [word in texts.texts[0].as_py() for word in words] == [n < known for n in range(4)]
        assert ("current" if before is None else f"before its {before}") in texts.notes
