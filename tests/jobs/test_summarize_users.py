"""Three ways to texts of users; each adds a labelled version to a content log."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.summarize_users import Extractive, Llm, Table, Target, run
from rayrec.data.content import ContentError, ContentLog, ItemTexts, Lists, TextField, read_content, write_content
from rayrec.data.content.batches import ContentInputs
from rayrec.data.content.drawing import gather
from rayrec.data.content.streams import ContentStreamConfig, JudgedContents, TrainingContents
from rayrec.data.content.tokens import tokenize
from rayrec.data.importing.reading import SourceError
from rayrec.text.asking import AnswerError
from rayrec.text.chat_endpoint import EndpointConfig
from rayrec.text.content_tokenizer import ContentTokenizer
from rayrec.text.tokenizer import train_tokenizer
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
    contents = ["the red dragon film and a dragon war", "film", "a space film, space travel", "in the film", "the of"]
    texts = extractive_interests(contents, [[0, 1], [2, 3], [4], []], 1)
    assert "dragon" in texts[0]
    assert "space" in texts[1]
    assert texts[0].startswith("Interested in ")
    assert texts[0].split("Interested in ")[1].split(" and ")[0].split(",")[0] != "film"
    assert texts[2:] == ["", ""]
    assert extractive_interests(["", ""], [[0], [1, 0], []]) == ["", "", ""]
    assert extractive_interests([], [[]]) == [""]
    assert extractive_interests(contents, [[2, 3], [0, 0, 1], [1, 2]], 1)[0] == texts[1]  # whatever others read


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
    assert "15 users with contents" in shown
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
    assert texts.before is None
    assert "1 texts of users that are not in the log" in capsys.readouterr().out
    pq.write_table(pa.table({"history": [1, 99], "text": ["Likes beaches.", "x"]}), tmp_path / "h.parquet")
    run(Table(Target(content, "each", "impressions"), tmp_path / "h.parquet", "a friend"))
    texts = read_content(content).user_texts["each"]
    assert (len(texts.texts), texts.before, texts.texts[1].as_py()) == (16, "impressions", "Likes beaches.")
    assert "1 texts of histories that are not in the log" in capsys.readouterr().out
    (tmp_path / "t.csv").write_text("user,words\nu1,x\n")
    with pytest.raises(SourceError, match="column 'text' is missing; found user, words"):
        run(Table(Target(content, "other"), tmp_path / "t.csv", "a friend"))


def test_texts_are_of_the_users_that_they_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = small_log()
    names = ["0042", "42", "NA", *(f"u{i}" for i in range(3, len(log.users)))]
    content = write_content(tmp_path / "log", replace(log, users=pa.array(names)))
    (tmp_path / "t.csv").write_text('user,text\n0042,"Likes travel,\nby train."\n42,Likes cars.\nNA,null\n')
    run(Table(Target(content, "given"), tmp_path / "t.csv", "a friend"))
    assert read_content(content).user_texts["given"].texts.to_pylist()[:4] == [
        "Likes travel,\nby train.", "Likes cars.", "null", "",
    ]  # fmt: skip
    assert "not in the log" not in capsys.readouterr().out
    (tmp_path / "h.csv").write_text("history,text\n0,Likes beaches.\nfirst,x\n")
    with pytest.raises(SourceError, match=r"h\.csv: column 'history', row 2 holds 'first', expected a number"):
        run(Table(Target(content, "each", "impressions"), tmp_path / "h.csv", "a friend"))


WORDS = ("apple", "banana", "cherry", "damson")


@pytest.fixture
def likes_in_time() -> ContentLog:
    """A user's four likes, each a word of its own: shown one after the other, beside the history before it."""
    items = ItemTexts.of(WORDS, (TextField("title", "Title", 4),), {"title": [f"{word} {word}" for word in WORDS]})
    histories = Lists.of([[1], [2, 1], [3, 2, 1], [4, 3, 2, 1], [2]])
    rows = [("train", 0, [2, 4], [1, 0]), ("valid", 1, [3, 4], [1, 0]), ("test", 2, [4, 1], [1, 0])]
    users, owners = pa.array(["u0", "u1"]), np.asarray([0, 0, 0, 0, 1])
    return ContentLog(items, users, np.asarray([3, 4]), owners, histories, gather(rows))


def words_of(text: str) -> list[bool]:
    return [word in text for word in WORDS]


def test_texts_for_a_study_know_nothing_of_what_it_judges(tmp_path: Path, likes_in_time: ContentLog) -> None:
    """Of likes in their order in time, the current history holds the item to be found; the one before the split does not."""
    log = likes_in_time
    assert log.histories_before("test").tolist() == [2, -1]
    assert log.histories_before("valid").tolist() == [1, -1]
    place = write_content(tmp_path / "log", log)
    for version, before, known in (("now", None, 4), ("t", "test", 3), ("v", "valid", 2)):
        run(Extractive(Target(place, version, before), sentences=9))  # type: ignore[arg-type]
        texts = read_content(place).user_texts[version]
        assert words_of(texts.texts[0].as_py()) == [n < known for n in range(4)]
        assert ("current" if before is None else f"before its {before}") in texts.notes
        assert texts.before == (before or "end")


def test_the_text_read_with_an_impression_holds_nothing_of_what_was_clicked(
    tmp_path: Path, likes_in_time: ContentLog
) -> None:
    """A text of a history is read with the impressions of that history; it is written from its contents alone."""
    place = write_content(tmp_path / "log", likes_in_time)
    run(Extractive(Target(place, "each", "impressions"), sentences=9))
    log = read_content(place)
    texts = log.user_texts["each"].texts.to_pylist()
    assert [words_of(text) for text in texts] == [
        [item + 1 in history for item in range(4)] for history in ([1], [2, 1], [3, 2, 1], [4, 3, 2, 1], [2])
    ]
    trained = train_tokenizer([" ".join(WORDS), "interested in and often engages with also follows"] * 3, 300)
    tokenizer = ContentTokenizer(trained.json, trained.separator, trained.separator, trained.vocabulary)
    inputs = ContentInputs(log, tokenize(log, tokenizer, "small", 64), 9, "each")
    (train,) = [batch for batch, _ in TrainingContents(inputs, ContentStreamConfig()).epoch_batches()]
    streams = [
        train,
        *(next(JudgedContents(inputs, s, ContentStreamConfig()).epoch_batches()) for s in ("valid", "test")),
    ]
    for batch, clicked in zip(streams, (1, 2, 3), strict=True):
        (read,) = [tokenizer.decode(ids) for ids in batch.interests.tokens.tolist()]
        assert words_of(read) == [item < clicked for item in range(4)]
    assert [texts[row] for row in log.current_text_rows("each")] == texts[3:]
    assert log.text_rows("each", np.asarray([2, -1])).tolist() == [2, -1]


@pytest.mark.parametrize(("before", "fit"), [(None, ()), ("test", ("test",)), ("valid", ("valid", "test"))])
def test_texts_that_know_the_answers_are_refused(
    tmp_path: Path, likes_in_time: ContentLog, before: str | None, fit: tuple[str, ...]
) -> None:
    place = write_content(tmp_path / "log", likes_in_time)
    run(Extractive(Target(place, "some", before)))  # type: ignore[arg-type]
    log = read_content(place)
    trained = train_tokenizer([" ".join(WORDS)] * 3, 300)
    tokenizer = ContentTokenizer(trained.json, trained.separator, trained.separator, trained.vocabulary)
    tokens = tokenize(log, tokenizer, "small", 64)
    inputs = ContentInputs(log, tokens, 9, interest="some")
    said = f"user texts 'some' were written from all that came before the {before or 'end'}: they know the answers of "
    for read in (inputs, ContentInputs(log, tokens, 9, summary="some")):
        with pytest.raises(ContentError, match=f"{said}train impressions"):
            TrainingContents(read, ContentStreamConfig())
    for split in ("valid", "test"):
        if split in fit:
            JudgedContents(inputs, split, ContentStreamConfig())
        else:
            with pytest.raises(ContentError, match=f"{said}{split} impressions"):
                JudgedContents(inputs, split, ContentStreamConfig())
    about = place / "user_texts" / "some" / "about.json"
    earlier = {k: v for k, v in json.loads(about.read_text()).items() if k != "before"}
    about.write_text(json.dumps(earlier))  # as it was written before texts said up to when
    assert read_content(place).user_texts["some"].before is None
    TrainingContents(ContentInputs(read_content(place), tokens, 9, "some"), ContentStreamConfig())
