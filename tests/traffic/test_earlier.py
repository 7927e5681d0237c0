"""Earlier answers out of the log of decisions: the right ones, newest first, whole, and no further back than allowed."""

from dataclasses import replace
from pathlib import Path

import pytest

from rayrec.traffic import decisions as module
from rayrec.traffic.decisions import DecisionLog
from rayrec.traffic.earlier import EarlierBounds, earlier_answers
from tests.traffic.serving import SCHEMA, STAGES, decision


@pytest.fixture
def log(tmp_path: Path) -> DecisionLog:
    return DecisionLog(tmp_path / "book" / "decisions", SCHEMA, STAGES)


def test_answers_of_a_user_come_newest_first_from_files_and_journals(log: DecisionLog, tmp_path: Path) -> None:
    log.append([decision("r1", 1_000), decision("r2", 2_000, user="bob"), decision("r3", 3_000, user=None)])
    log.roll()
    log.append([decision("r4", 4_000), replace(decision("r5", 5_000, user=None), asked="q")])
    found = earlier_answers(tmp_path, "ann", "q", 10)
    assert [answer.request for answer in found.answers] == ["r4", "r1"]
    assert (found.rows, found.whole) == (20, True)
    first = found.answers[0]
    assert (first.time_ms, first.user, first.arm, first.models) == (4_000, "ann", "new", {"early": "small/3"})
    assert (first.items, first.scores) == (("item-0", "item-1"), (0.5, 0.5))
    assert [answer.request for answer in earlier_answers(tmp_path, None, "q", 10).answers] == ["r5"]
    assert earlier_answers(tmp_path, "eve", "q", 10).answers == ()
    assert earlier_answers(tmp_path / "nothing", "ann", "q", 10).answers == ()
    log.close()


def test_items_stand_in_the_order_of_the_reply_with_the_score_of_the_last_stage_that_answered(
    log: DecisionLog, tmp_path: Path
) -> None:
    nan = float("nan")
    log.append(
        [
            replace(
                decision("r", shown=0),
                position=[2, 0, -1, 1],
                scores={"early": [0.1, 0.2, 0.3, 0.4], "late": [nan] * 4},
            )
        ]
    )
    (answer,) = earlier_answers(tmp_path, "ann", "", 10).answers
    assert answer.items == ("item-1", "item-3", "item-0")
    assert answer.scores == (0.2, 0.4, 0.1)
    log.close()


def test_a_decision_that_lies_in_two_pieces_is_told_whole(
    log: DecisionLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROW_GROUP_ROWS", 3)
    log.append([decision(f"r{i}", 1_000 * i, shown=4) for i in range(5)])
    log.roll()
    assert [p.rows for p in module.newest_pieces(log.folder)] == [2, 3, 3, 3, 3, 3, 3]
    for most in range(1, 6):
        found = earlier_answers(tmp_path, "ann", "", most).answers
        assert [answer.request for answer in found] == [f"r{i}" for i in (4, 3, 2, 1, 0)][:most]
        assert all(answer.items == ("item-0", "item-1", "item-2", "item-3") for answer in found)
    log.close()


def test_a_search_ends_where_it_has_enough_and_where_its_bounds_are(
    log: DecisionLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROW_GROUP_ROWS", 4)
    log.append([decision(f"r{i}", 1_000 * i, user="ann" if i % 2 else "bob") for i in range(10)])
    log.roll()
    enough = earlier_answers(tmp_path, "ann", "", 2)
    assert ([a.request for a in enough.answers], enough.rows, enough.whole) == (["r9", "r7"], 20, True)
    short = earlier_answers(tmp_path, "ann", "", 10, EarlierBounds(rows=12))
    assert ([a.request for a in short.answers], short.rows, short.whole) == (["r9", "r7"], 12, False)
    none = earlier_answers(tmp_path, "ann", "", 10, EarlierBounds(seconds=0.0))
    assert (none.answers, none.rows, none.whole) == ((), 0, False)
    log.close()


def test_books_are_merged_by_time_and_the_shadows_is_passed_over(log: DecisionLog, tmp_path: Path) -> None:
    other = DecisionLog(tmp_path / "other" / "decisions", replace(SCHEMA, name="other"), STAGES)
    shadow = DecisionLog(tmp_path / "shadow" / "decisions", replace(SCHEMA, features=()), ("shadow",))
    log.append([decision("r1", 1_000), decision("r3", 3_000)])
    other.append([decision("r2", 2_000), decision("r4", 4_000)])
    shadow.append([replace(decision("r9", 9_000), scores={"shadow": [0.1] * 4})])
    found = earlier_answers(tmp_path, "ann", "", 3)
    assert [answer.request for answer in found.answers] == ["r4", "r3", "r2"]
    assert found.rows == 16
    for each in (log, other, shadow):
        each.close()
