"""Both ways to preferences give the same table under the same rules."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.build_preference_benchmark import BuildBenchmark
from jobs.generate_preferences import Extractive, Llm, Moments, names_of, run
from rayrec.data.importing.reading import SourceError
from rayrec.data.preferences.table import read_preferences
from rayrec.data.sequences import Interactions, ItemTable, SequenceData, write_sequences
from rayrec.text.chat_endpoint import ChatError, EndpointConfig
from rayrec.text.preferences import checked, is_negative
from rayrec.typed_json import ConfigError
from tests.llm_stub import GOOD, Behaviour, Handler, Stub, first_times, running_stub, said

ITEMS = 40
BRAND = json.dumps({"preferences": ["Find Scotch tape", "Find b c", "Find c d", "Find d e", "Find e f"]})


@pytest.fixture
def stub() -> Iterator[Stub]:
    with running_stub() as found:
        yield found


def sequences(folder: Path) -> SequenceData:
    generator = np.random.default_rng(1)
    lengths = generator.integers(3, 8, 25)
    items = np.concatenate([generator.permutation(ITEMS)[:n] + 1 for n in lengths]).astype(np.int32)
    kinds = ("Glues", "Wood Screws", "PVC Tape", "Scotch Tools", "3D Printing")
    labels = [
        []
        if i == 7
        else ["category: Everything", f"category: {kinds[i % 5]}", f"category: Kind {i % 9}", "brand: Scotch"]
        for i in range(1, ITEMS + 1)
    ]
    titles = [f"Scotch Tough Thing {i}" for i in range(1, ITEMS + 1)]
    table = ItemTable.of([f"i{i}" for i in range(1, ITEMS + 1)], [f"Title: {t}." for t in titles], None, titles, labels)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    data = SequenceData(Interactions(offsets, items, ITEMS), table, pa.array([f"u{i}" for i in range(25)]), "toy")
    write_sequences(folder, data)
    return data


def test_extractive_preferences_obey_the_rules_know_nothing_later_and_are_the_same_each_time(tmp_path: Path) -> None:
    data = sequences(tmp_path / "seq")
    folder = run(Extractive(Moments(tmp_path / "seq", tmp_path / "pref")))
    assert folder is not None
    found, names = read_preferences(folder, data), names_of(data)
    assert found.record.origin == "extractive"
    assert len(found.texts) == int((data.interactions.lengths - 1).sum())  # positions 2 .. length
    for user, position, texts in zip(found.users, found.positions, found.texts, strict=True):
        assert checked(texts, names) == texts
        assert len(texts) == 5
        assert sum(map(is_negative, texts)) == 1
        start = data.interactions.offsets[user]
        known = data.interactions.items[start : start + position]
        own = {f"kind {item % 9}" for item in known if item != 7}
        avoided = next(text for text in texts if is_negative(text)).removeprefix("Avoid ")
        assert avoided not in own
        recent = data.interactions.items[start + max(0, position - 5) : start + position]
        allowed = {
            t
            for i in recent
            if i != 7
            for t in (f"kind {i % 9}", "glues products", "wood screws", "PVC tape", "3D printing")
        }
        for text in texts[:4]:
            assert any(text.endswith(f" {phrase}") for phrase in allowed), text
        assert not any("everything" in text for text in texts)
    again = run(Extractive(Moments(tmp_path / "seq", tmp_path / "again")))
    assert again is not None
    assert read_preferences(again, data).texts == found.texts
    run(Extractive(Moments(tmp_path / "seq", tmp_path / "last", newest=1, users=3)))
    last = read_preferences(tmp_path / "last", data)
    assert last.positions.tolist() == data.interactions.lengths[:3].tolist()


def test_a_seed_that_no_draw_can_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed must be at least 0, not -1"):
        Extractive(Moments(Path("seq"), Path("pref")), seed=-1)
    with pytest.raises(ConfigError, match="seed must be at least 0, not -1"):
        BuildBenchmark(Path("seq"), Path("pref"), Path("out"), seed=-1)


def test_a_language_model_is_asked_once_for_each_and_a_dry_run_asks_nothing(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = sequences(tmp_path / "seq")
    endpoint = EndpointConfig(stub.url, "stub", first_wait=0.01, input_price=1.0, output_price=1.0)
    moments = Moments(tmp_path / "seq", tmp_path / "pref", users=4)
    (tmp_path / "reviews.csv").write_text("user,item,review\nu0,i1,not for me\n")
    command = Llm(moments, endpoint, reviews=tmp_path / "reviews.csv")
    assert run(Llm(moments, endpoint, dry_run=True)) is None
    printed = capsys.readouterr().out
    assert "Never name a brand" in printed
    assert "- Title: Scotch Tough Thing" in printed
    assert "cost at most 0." in printed
    assert not stub.seen
    stub.behaviours["*"] = first_times(1, said(BRAND))  # refused: the catalogue has that brand
    folder = run(command)
    assert folder is not None
    found = read_preferences(folder, data)
    wanted = int((data.interactions.lengths[:4] - 1).sum())
    assert len(found.texts) == wanted
    assert set(found.texts) == {tuple(json.loads(GOOD)["preferences"])}
    assert found.record.origin == "llm"
    assert found.record.maker == "stub, prompt preferences.v1, newest 5 items"
    assert set(stub.paid.values()) == {2}
    paid = sum(stub.paid.values())
    run(command)
    assert sum(stub.paid.values()) == paid
    assert "0 paid" in capsys.readouterr().out


def test_no_preference_is_lost_or_paid_twice_when_each_request_fails_in_its_own_way_and_the_run_breaks_off(
    stub: Stub, tmp_path: Path
) -> None:
    def cut(handler: Handler, question: str, before: int) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"choices": [')
        handler.close_connection = True
        return True

    def slow(handler: Handler, question: str, before: int) -> bool:
        time.sleep(1.4)
        return True

    refused = (said("{"), said('{"preferences": ["Find a b"]}'), said(BRAND))
    unpaid: tuple[Behaviour, ...] = (
        cut, slow, lambda h, q, b: h.send(500, b"down"), lambda h, q, b: h.send(429, b""),
        lambda h, q, b: h.send(429, b"", Retry_After="0"),
    )  # fmt: skip
    questions: list[str] = []
    broken = [True]

    def faulty(handler: Handler, question: str, before: int) -> bool:
        with stub.lock:
            if question not in questions:
                questions.append(question)
            number = questions.index(question)
        if broken[0] and number == 14:
            return handler.send(401, b"expired key")  # ends the run
        if before == 0:
            return (*unpaid, *refused)[number % 8](handler, question, before)
        own = [f"Find part{number} for use {word}" for word in ("one", "two", "three", "four", "five")]
        handler.complete(question, json.dumps({"preferences": own}))
        return True

    stub.behaviours["*"] = faulty
    data = sequences(tmp_path / "seq")
    endpoint = EndpointConfig(stub.url, "stub", first_wait=0.01, timeout=1.0, concurrency=3)
    command = Llm(Moments(tmp_path / "seq", tmp_path / "pref", users=6), endpoint)
    with pytest.raises(ChatError, match="status 401"):
        run(command)
    assert not (tmp_path / "pref" / "preferences.parquet").exists()
    assert sum(stub.paid.values()) > 0
    broken[0] = False
    folder = run(command)
    assert folder is not None
    found = read_preferences(folder, data)
    wanted = int((data.interactions.lengths[:6] - 1).sum())
    moments = list(zip(found.users.tolist(), found.positions.tolist(), strict=True))
    assert len(moments) == len(set(moments)) == wanted == len(questions)
    assert sorted({texts[0] for texts in found.texts}) == sorted(f"Find part{n} for use one" for n in range(wanted))
    assert [stub.paid[q] for q in questions if q != questions[14]] == [
        1 + (n % 8 >= len(unpaid)) for n in range(wanted) if n != 14
    ]
    assert stub.paid[questions[14]] == 1  # its first try was the one that ended the run


def test_answers_that_never_obey_are_told_and_data_without_labels_is_refused(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = sequences(tmp_path / "seq")
    stub.behaviours["*"] = said("[]")
    moments = Moments(tmp_path / "seq", tmp_path / "pref", users=1, newest=1)
    run(Llm(moments, EndpointConfig(stub.url, "stub"), answers=2))
    found = read_preferences(tmp_path / "pref", data)
    assert found.texts == ()
    assert found.record.refused == {"2 answers refused; the last: 0 different preferences, expected at least 5": 1}
    assert "1 without an answer that obeys the rules" in capsys.readouterr().out
    bare = SequenceData(data.interactions, ItemTable.of(data.items.names), data.users)
    write_sequences(tmp_path / "bare", bare)
    with pytest.raises(ConfigError, match="no labels"):
        run(Extractive(Moments(tmp_path / "bare", tmp_path / "p")))
    with pytest.raises(SourceError, match="no such file"):
        run(Llm(moments, EndpointConfig(stub.url, "stub"), reviews=tmp_path / "absent.csv"))


def test_reviews_are_shown_to_the_users_and_items_that_they_name(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = ItemTable.of(["007", "7", "08"], ["seven", "other seven", "eight"], None, ["A", "B", "C"])
    interactions = Interactions(np.array([0, 2, 4], np.int64), np.array([1, 3, 2, 3], np.int32), 3)
    write_sequences(tmp_path / "seq", SequenceData(interactions, items, pa.array(["007", "7"]), "named"))
    reviews = tmp_path / "reviews.csv"
    reviews.write_text('user,item,review\n007,007,"loud, and\nheavy"\n007,08,NA\n7,007,not his\n9,7,of nobody\n')
    command = Llm(Moments(tmp_path / "seq", tmp_path / "pref"), EndpointConfig(stub.url, "stub"), reviews=reviews)
    run(replace(command, dry_run=True, shown=9))
    printed = capsys.readouterr().out
    assert "- seven Review: loud, and\nheavy" in printed
    assert "- eight Review: NA" in printed
    assert printed.count("Review: ") == 2
    assert "1 of 4 rows left out: no text, or not of a user and an item of the sequences" in printed
    reviews.write_text("user,item,review\n0007,007,loud\n")
    with pytest.raises(ConfigError, match=r"reviews\.csv: no review of a user and an item of the sequences"):
        run(command)
    assert not stub.seen
