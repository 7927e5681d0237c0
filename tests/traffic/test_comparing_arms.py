"""Arms and a shadow out of a traffic folder, beside sums that are made by hand."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import astuple, replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from rayrec.data.log import LogError
from rayrec.traffic import arm_sums
from rayrec.traffic.arm_sums import Period, shadow_books, sum_traffic
from rayrec.traffic.assignment import Assignment
from rayrec.traffic.comparing_arms import compare_arms
from rayrec.traffic.decisions import DecisionLog, LoggedDecision
from rayrec.traffic.feedback import Feedback, FeedbackLog, Outcome
from rayrec.traffic.over_users import ratio_of_sums
from rayrec.traffic.shadow_overlap import compare_shadow
from tests.traffic.serving import SCHEMA, STAGES, decision

WINDOW_MS = 10_000
EQUAL = {"old": 0.5, "new": 0.5}
EXPERIMENT = next(  # one that draws the users of ``filled`` as they are there
    drawn
    for drawn in (Assignment(str(salt), EQUAL) for salt in count())
    if [drawn.arm(user) for user in ("ann", "bob", "cid", "dee")] == ["old", "old", "new", "new"]
)
ALL = Period(WINDOW_MS, until_ms=1_000_000)
ARMS = ("old", "new")


class Traffic:
    """A folder that is written to as a service does."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._logs = ExitStack()
        stack.push(self._logs)
        self.decisions = self._logs.enter_context(DecisionLog(folder / "book" / "decisions", SCHEMA, STAGES))
        self.shadow = self._logs.enter_context(
            DecisionLog(folder / "shadow" / "decisions", replace(SCHEMA, features=()), ("shadow",))
        )
        shown = lambda request, item, now: 1_000  # noqa: E731
        self.feedback = self._logs.enter_context(
            FeedbackLog(folder / "book" / "feedback", SCHEMA.task_names, shown, window_ms=10**9, now_ms=0)
        )

    def decide(self, request: str, user: str | None, arm: str, shown: int = 2, time_ms: int = 1_000) -> LoggedDecision:
        """Predicts .1, .2, .3, .4 of a click, and .5 of a buy given one."""
        predicted = {"click": [0.1, 0.2, 0.3, 0.4], "buy": [0.5] * 4}
        made = replace(decision(request, time_ms, shown, user=user), arm=arm, predicted=predicted)
        self.decisions.append([made])
        return made

    def say(self, request: str, item: int, at_ms: int = 1_500, **labels: int) -> None:
        assert self.feedback.accept(Feedback(request, f"item-{item}", labels), at_ms) is Outcome.ACCEPTED


@pytest.fixture
def traffic(tmp_path: Path) -> Iterator[Traffic]:
    with ExitStack() as stack:
        yield Traffic(tmp_path, stack)


def filled(traffic: Traffic) -> None:
    """ann, bob: old, three decisions and one; cid, dee: new, one and two."""
    for i, (user, arm) in enumerate(
        [("ann", "old"), ("ann", "old"), ("ann", "old"), ("bob", "old"), ("cid", "new"), ("dee", "new"), ("dee", "new")]
    ):
        traffic.decide(f"r{i}", user, arm)
    traffic.say("r0", 0, click=1)
    traffic.say("r0", 1, click=1, buy=1)
    traffic.say("r3", 0, click=0)
    traffic.say("r4", 1, click=1)
    traffic.say("r5", 0, click=1, buy=0)


def test_sums_of_each_user_are_those_made_by_hand(traffic: Traffic) -> None:
    filled(traffic)
    sums = sum_traffic(traffic.folder, ARMS, ALL)
    assert sums.tasks == ("click", "buy")
    old, new = sums.arms["old"], sums.arms["new"]
    assert (old.users, new.users) == (("ann", "bob"), ("cid", "dee"))
    assert (old.decisions.tolist(), new.decisions.tolist()) == ([3, 1], [1, 2])
    assert (old.told.tolist(), new.told.tolist()) == ([1, 1], [1, 1])
    assert (old.positives.tolist(), new.positives.tolist()) == ([[2, 1], [0, 0]], [[1, 0], [1, 0]])
    np.testing.assert_allclose(old.expected, [[0.9, 0.45], [0.3, 0.15]])  # (.1 + .2) of a click, half of that of a buy


def test_the_report_has_values_differences_and_calibration_over_users(traffic: Traffic) -> None:
    filled(traffic)
    report = compare_arms(sum_traffic(traffic.folder, ARMS, ALL), "old", EXPERIMENT)
    old, new = report.arms["old"], report.arms["new"]
    assert (old.users, old.decisions, new.users, new.decisions) == (2, 4, 2, 3)
    assert (old.told.value, new.told.value) == (0.5, pytest.approx(2 / 3))
    assert (old.tasks["click"].value.value, new.tasks["click"].value.value) == (0.5, pytest.approx(2 / 3))
    assert old.tasks["click"].difference is None
    expected = ratio_of_sums([1, 1], [1, 2]).minus(ratio_of_sums([2, 0], [3, 1]))
    assert new.tasks["click"].difference == expected
    by_hand = ratio_of_sums([2, 0], [0.9, 0.3]).estimate()
    assert astuple(old.tasks["click"].calibration) == pytest.approx(astuple(by_hand))  # type: ignore[arg-type]
    assert old.tasks["buy"].calibration is not None
    assert old.tasks["buy"].calibration.value == pytest.approx(1 / 0.6)
    assert report.split is not None
    assert report.split.p == 1
    assert report.warnings == []


def test_only_decisions_of_the_time_and_feedback_of_the_window_count(traffic: Traffic) -> None:
    for i, time_ms in enumerate((1_000, 2_000, 3_000)):
        traffic.decide(f"r{i}", "ann", "old", time_ms=time_ms)
        traffic.decide(f"n{i}", "bob", "new", time_ms=time_ms)
    traffic.say("r1", 0, at_ms=1_000 + WINDOW_MS, click=1)
    traffic.say("r1", 1, at_ms=1_001 + WINDOW_MS, click=1)  # shown at 1,000: late
    traffic.say("r2", 0, click=1)
    sums = sum_traffic(traffic.folder, ARMS, Period(WINDOW_MS, until_ms=2_999, since_ms=2_000))
    assert sums.arms["old"].decisions.tolist() == [1]
    assert sums.arms["old"].positives.tolist() == [[1, 0]]


def test_decisions_of_nobody_and_of_no_arm_are_counted_apart_and_users_of_two_arms_left_out(traffic: Traffic) -> None:
    filled(traffic)
    traffic.decide("x0", None, "all")
    traffic.decide("x1", "bob", "mixed")
    traffic.decide("x2", None, "old")
    traffic.decide("x3", "eve", "old")
    traffic.decide("x4", "eve", "new")
    sums = sum_traffic(traffic.folder, ARMS, ALL)
    assert sums.nobodys == {"all": 1, "mixed": 1, "old": 1}
    assert sums.moved == 1
    assert sums.arms["old"].users == ("ann", "bob")
    (warning,) = compare_arms(sums, "old", None).warnings
    assert warning.startswith("1 of 5 users are in more than one arm and were left out")


def test_a_decision_counts_once_where_it_lies_in_two_pieces_of_the_log(
    traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(traffic)
    whole = sum_traffic(traffic.folder, ARMS, ALL)
    traffic.decisions.roll()
    read = arm_sums.decision_tables
    for rows in (1, 3, 4, 5, 100):

        def torn(*arguments: object, rows: int = rows) -> object:
            for table in read(*arguments):  # type: ignore[arg-type]
                yield from (table.slice(start, rows) for start in range(0, len(table), rows))

        monkeypatch.setattr(arm_sums, "decision_tables", torn)
        sums = sum_traffic(traffic.folder, ARMS, ALL)
        for arm in ARMS:
            assert sums.arms[arm].decisions.tolist() == whole.arms[arm].decisions.tolist()
            assert sums.arms[arm].told.tolist() == whole.arms[arm].told.tolist()
            assert sums.arms[arm].positives.tolist() == whole.arms[arm].positives.tolist()


def test_a_split_that_is_not_as_configured_is_a_warning(traffic: Traffic) -> None:
    for i in range(100):
        user = f"user-{i}"
        arm = Assignment("e", EQUAL).arm(user)
        if arm == "old" or i < 20:  # the answers of most users of one arm are lost
            traffic.decide(f"r{i}", user, arm)
    report = compare_arms(sum_traffic(traffic.folder, ARMS, ALL), "old", Assignment("e", EQUAL))
    (warning,) = report.warnings
    assert re.match(
        r"the users are not split as configured \(p = .*e-.*; users found of those expected: old \d+ of \d+, new ",
        warning,
    )


def test_users_in_another_arm_than_their_names_draw_are_a_warning(traffic: Traffic) -> None:
    filled(traffic)
    other = next(drawn for drawn in (Assignment(f"x{i}", EQUAL) for i in count()) if drawn.arm("ann") == "new")
    report = compare_arms(sum_traffic(traffic.folder, ARMS, ALL), "old", other)
    assert report.drawn_otherwise >= 1
    assert f"{report.drawn_otherwise} of 4 users are in another arm than this experiment draws" in report.warnings[0]


def test_an_arm_without_users_and_a_control_that_is_none_are_refused_by_name(traffic: Traffic) -> None:
    filled(traffic)
    with pytest.raises(LogError, match="arm 'third': no decision of a user"):
        compare_arms(sum_traffic(traffic.folder, (*ARMS, "third"), ALL), "old", None)
    with pytest.raises(LogError, match="no arm 'x' to compare with; there are old, new"):
        compare_arms(sum_traffic(traffic.folder, ARMS, ALL), "x", None)
    with pytest.raises(LogError, match="no log of decisions"):
        sum_traffic(traffic.folder / "elsewhere", ARMS, ALL)


def watched(traffic: Traffic, made: LoggedDecision, scores: list[float]) -> None:
    shadow = replace(
        made,
        models={"shadow": "s/1"},
        scores={"shadow": scores},
        position=[-1] * 4,
        predicted={"click": scores, "buy": [0.5] * 4},
    )
    traffic.shadow.append([shadow])


def test_a_shadow_is_held_against_what_was_shown(traffic: Traffic) -> None:
    same = traffic.decide("r0", "ann", "old")  # shows item-0, item-1
    half = traffic.decide("r1", "ann", "old")
    none = traffic.decide("r2", None, "all")
    traffic.decide("r3", "bob", "old")  # not scored by the shadow
    watched(traffic, same, [0.9, 0.8, 0.1, 0.0])
    watched(traffic, half, [0.9, 0.1, 0.8, 0.0])  # its ranks: 1, 3
    watched(traffic, none, [0.1, 0.2, 0.8, 0.9])  # 4, 3
    traffic.say("r0", 0, click=1)
    traffic.say("r1", 1, click=1, buy=1)
    sums = sum_traffic(traffic.folder, ARMS, ALL, keep_shown=True)
    assert sums.shown is not None
    (book,) = shadow_books(traffic.folder)
    found = compare_shadow(book, sums.shown, sums.tasks, ALL)
    assert found.keys() == {"all", "old"}
    old, nobody = found["old"], found["all"]
    assert (old.decisions, old.other.value, old.overlap.value) == (2, 0.5, 0.75)
    assert (old.mean_rank.value, old.own_rank) == ((1 + 2 + 1 + 3) / 4, 1.5)
    assert old.calibration["click"].value == pytest.approx(2 / (0.9 + 0.8 + 0.9 + 0.1))
    assert old.calibration["buy"].value == pytest.approx(1 / (0.5 * 2.7))
    assert (nobody.decisions, nobody.other.value, nobody.overlap.value, nobody.mean_rank.value) == (1, 1, 0, 3.5)


def test_a_shadow_of_the_same_ranker_would_have_shown_the_same(traffic: Traffic) -> None:
    for i in range(5):
        made = traffic.decide(f"r{i}", f"user-{i}", "old", shown=i % 4 + 1)
        watched(traffic, made, [0.4, 0.3, 0.2, 0.2])  # a tie, in the order of the log
    sums = sum_traffic(traffic.folder, ("old",), ALL, keep_shown=True)
    assert sums.shown is not None
    same = compare_shadow(traffic.folder / "shadow", sums.shown, sums.tasks, ALL)["old"]
    assert (same.other.value, same.overlap.value) == (0, 1)
    assert same.mean_rank.value == pytest.approx(same.own_rank)
