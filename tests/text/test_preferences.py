"""The rules of preferences, their inversions, and which may be matched."""

import pytest

from rayrec.text.asking import AnswerError
from rayrec.text.preferences import Names, candidates, checked, inverted, is_negative, parsed

FIVE = [
    "Find strong glue",
    "Search for fine brushes",
    "Look for steel screws",
    "Prefer small packs",
    "Avoid thin gloves",
]
NOBODY = Names()


def test_five_good_preferences_pass_and_more_are_cut_to_five() -> None:
    assert checked(FIVE, NOBODY) == tuple(FIVE)
    assert checked([*FIVE, "Find more glue"], NOBODY) == tuple(FIVE)
    assert checked([*FIVE, "Find more glue"], NOBODY, most=None) == (*FIVE, "Find more glue")
    assert checked([f"  {FIVE[0]} \n", *FIVE[1:]], NOBODY) == tuple(FIVE)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (FIVE[:4], "4 different preferences, expected at least 5"),
        ([*FIVE[:4], FIVE[0]], "4 different preferences"),
        ([*FIVE[:4], "Glue!"], "'Glue!' is a single word"),
        ([*FIVE, "Glue"], "'Glue' is a single word"),
        ([*FIVE[:4], "Find " + "very " * 100 + "long"], "characters, expected at most 400"),
        ([*FIVE[:4], "Find anything by Scotch"], "names the brand or product 'Scotch'"),
        ([*FIVE[:4], "find SHOP-VAC filters"], "names the brand or product 'SHOP VAC'"),
        ([*FIVE[:4], "Films like toy story"], "names the brand or product 'toy story'"),
        ([*FIVE[:4], "Find sealed unit parts"], "names the brand or product 'sealed unit parts'"),
    ],
)
def test_a_broken_rule_is_named(given: list[str], problem: str) -> None:
    names = Names(["Scotch", "Shop-Vac", "Sealed Unit Parts Co., Inc."], ["Toy Story (1995)", "Heat (1995)"])
    with pytest.raises(AnswerError) as raised:
        checked(given, names)
    assert problem in str(raised.value)


def test_a_name_of_one_word_is_found_as_it_is_written_only_and_a_title_ends_where_it_describes() -> None:
    names = Names(["Scotch", "generic"], ["Heat (1995)", "Stanley Staples, Steel (1000 Count)"])
    assert names.found_in("a glass of scotch in the heat, generic steel") is None
    assert names.found_in("films like Heat") == "Heat"
    assert names.found_in("find stanley staples of brass") == "stanley staples"


def test_answers_are_read_bare_fenced_and_as_a_list_and_nothing_else_is() -> None:
    body = '{"preferences": ["a b", "b c", "c d", "d e", "e f"]}'
    five = ("a b", "b c", "c d", "d e", "e f")
    assert parsed(body, NOBODY) == parsed(f"```json\n{body}\n```", NOBODY) == five
    assert parsed('["a b", "b c", "c d", "d e", "e f"]', NOBODY) == five
    for wrong in (
        "",
        "Sure! " + body,
        body[:-3],
        '{"preferences": "a b"}',
        '{"preferences": [1, 2, 3, 4, 5]}',
        "{}",
        "3",
    ):
        with pytest.raises(AnswerError):
            parsed(wrong, NOBODY)


@pytest.mark.parametrize(
    ("negative", "positive"),
    [
        ("Avoid horror films", "Find horror films"),
        ("avoid  thin gloves", "Find thin gloves"),
        ("Please avoid latex", "Find latex"),
        ("Exclude anything with latex", "Search for anything with latex"),
        ("No loud pumps", "Search for loud pumps"),
        ("NO wood", "Search for wood"),
        ("Find no-slip gloves", None),
        ("No-slip gloves", None),
        ("Notable gloves", None),
        ("Dislikes gloves", None),
        ("Avoid", None),
        ("", None),
    ],
)
def test_inversion_rules(negative: str, positive: str | None) -> None:
    assert inverted(negative) == positive
    if positive is not None:
        assert is_negative(negative)
        assert not is_negative(positive)


def test_positive_preferences_are_matched_else_inversions_else_all() -> None:
    assert candidates(["Avoid a b", "Find c d", "No e f", "Prefer g"]) == ("Find c d", "Prefer g")
    assert candidates(["Avoid a b", "Dislikes c d", "No e f"]) == ("Find a b", "Search for e f")
    assert candidates(["Dislikes c d", "I don't want e"]) == ("Dislikes c d", "I don't want e")
    assert not is_negative("I enjoy films without violence")
    assert not is_negative("I have a fondness for noir")
