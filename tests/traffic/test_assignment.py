"""Arms by a stable hash: shares, who moves when weights change, independence, the same everywhere."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.traffic.assignment import Assignment
from rayrec.typed_json import ConfigError

USERS = [f"user-{i}" for i in range(4_000)]
weights = st.dictionaries(st.sampled_from("abcde"), st.floats(0.05, 10), min_size=2)


@settings(max_examples=20, deadline=None)
@given(weights, st.text(max_size=5))
def test_shares_come_out_as_weighted(by_arm: dict[str, float], salt: str) -> None:
    split = Assignment(salt, by_arm)
    arms = [split.arm(user) for user in USERS]
    for arm in by_arm:
        share = split.share(arm)
        assert abs(arms.count(arm) / len(USERS) - share) < 5 * (share * (1 - share) / len(USERS)) ** 0.5


@settings(max_examples=20, deadline=None)
@given(weights, st.floats(1.01, 5), st.data())
def test_when_a_weight_grows_users_move_to_that_arm_only(
    by_arm: dict[str, float], factor: float, data: st.DataObject
) -> None:
    grown = data.draw(st.sampled_from(sorted(by_arm)))
    before, after = Assignment("s", by_arm), Assignment("s", {**by_arm, grown: by_arm[grown] * factor})
    moved = [(before.arm(u), after.arm(u)) for u in USERS[:1000] if before.arm(u) != after.arm(u)]
    assert all(new == grown for _, new in moved)
    assert abs(len(moved) / 1000 - (after.share(grown) - before.share(grown))) < 0.08  # no more than must


def test_a_new_arm_takes_users_and_swaps_none() -> None:
    before, after = Assignment("s", {"a": 1, "b": 1}), Assignment("s", {"c": 1, "b": 1, "a": 1})
    assert all(after.arm(u) in ("c", before.arm(u)) for u in USERS)


def test_experiments_of_two_salts_are_independent() -> None:
    one, other = Assignment("one", {"a": 1, "b": 1}), Assignment("other", {"a": 1, "b": 1})
    both = sum(one.arm(u) == other.arm(u) == "a" for u in USERS) / len(USERS)
    assert both == pytest.approx(0.25, abs=0.035)  # 5 standard errors


def test_an_arm_is_the_same_in_another_process_and_forever() -> None:
    split = Assignment("ranker-test", {"a": 0.9, "b": 0.1})
    code = (
        "from rayrec.traffic.assignment import Assignment as A; s = A('ranker-test', {'b': 0.1, 'a': 0.9});"
        "print(''.join(s.arm(f'user-{i}') for i in range(40)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert told == "".join(split.arm(f"user-{i}") for i in range(40)) == FIRST_40


FIRST_40 = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaabaaaaaba"


@pytest.mark.parametrize("wrong", [{}, {"a": 0.0}, {"a": -1.0, "b": 2.0}, {"a": float("nan")}])
def test_weights_that_are_no_shares_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="experiment 's'"):
        Assignment("s", wrong)
