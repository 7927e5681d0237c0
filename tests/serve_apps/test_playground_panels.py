"""The page of a service that logs its traffic, by keyboard alone, with what a screen reader hears; skipped without Chromium."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from rayrec.traffic.feedback import read_feedback
from serve_apps.cascade.api import build_cascade_app
from serve_apps.service.limits import ServiceLimits
from serve_apps.service.metrics import ServingMetrics
from tests.serve_apps.cascade_parts import PlainStages, served_cascade, small_parts
from tests.serve_apps.chromium import CHROMIUM, Browser
from tests.serve_apps.local_traffic import LocalTraffic, WithTraffic
from tests.serve_apps.test_arms import experiment
from tests.serve_apps.test_cascade import ASK
from tests.serve_apps.test_playground import LINK, browse, served

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
STATUS = "document.getElementById('status').textContent"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("panels")


@pytest.fixture(scope="module")
def url(folder: Path, small_log: Path) -> Iterator[str]:
    parts = small_parts(folder, small_log)
    references = parts.references(experiment(parts))
    stages = PlainStages(references, folder)
    owner = LocalTraffic(folder / "traffic")
    service = WithTraffic(served_cascade(references, stages, "late"), stages, owner)
    with served(build_cascade_app(service, ServingMetrics(), ServiceLimits(), feedback=True)) as found:
        yield found
    owner.ledger.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


def said(folder: Path) -> list[tuple[str, dict[str, float]]]:
    books = [book for book in (folder / "traffic").iterdir() if (book / "feedback").is_dir()]
    return [(e.feedback.item, dict(e.feedback.labels)) for book in books for e in read_feedback(book / "feedback")]


def test_all_of_the_page_is_done_by_keyboard_and_heard_by_a_screen_reader(
    browser: Browser, url: str, folder: Path
) -> None:
    browser.open(f"{url}/play?{LINK.removesuffix('&ask')}&user=ann")
    browser.wait("!document.getElementById('before').hidden")
    passed = browser.tab_to("Recommend")
    assert passed[1] == "Skip to the answer"
    names = [*passed, "Recommend"]
    for one, other in pairwise(FORM):
        assert names.index(one) < names.index(other)
    browser.press("Enter")
    browser.wait(f"{STATUS}.includes('items in')")
    assert "By arm" in browser.value(STATUS)
    assert browser.focused() == "Answer"
    assert browser.value("document.getElementById('status').getAttribute('aria-live')") == "polite"

    first = browser.value("answered.items[0].item")
    browser.tab_to(f"click: {first}")
    browser.press("Space")
    browser.wait(f"{STATUS}.startsWith('Feedback accepted')")
    assert browser.focused() == f"click: {first}"
    assert browser.value("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert said(folder) == [(first, {"click": 1})]
    browser.press("Space")
    browser.wait(f"{STATUS}.startsWith('Feedback duplicate')")
    browser.tab_to(f"no click: {first}")
    browser.press("Enter")
    browser.wait(f"{STATUS}.startsWith('Feedback conflicting')")
    browser.tab_to(f"no buy: {first}")
    browser.press("Enter")
    browser.wait(f"{STATUS}.startsWith('Feedback accepted')")
    assert said(folder) == [(first, {"click": 1}), (first, {"buy": 0})]

    browser.value("document.getElementById('k').focus()")
    browser.tab_to("Compare the versions on trial")
    browser.press("Enter")
    browser.wait(f"{STATUS}.includes('in the same place')")
    assert browser.focused() == "The same request by each version on trial"
    browser.value("document.getElementById('k').focus()")
    browser.tab_to("How was it answered before?")
    browser.press("Enter")
    browser.wait(f"{STATUS}.includes('earlier answer')")
    assert browser.focused() == "How it was answered before"
    for role, expected in (("heading", HEADINGS), ("group", [f"Feedback on {first}"])):
        assert set(expected) <= set(browser.named(role))
    assert "" not in [
        *browser.named("button"),
        *browser.named("textbox"),
        *browser.named("slider"),
        *browser.named("table"),
    ]


FORM = (
    "Skip to the answer", "Add an item: type a part of its name or title", "Remove item-3 from the history",
    "User, for models that know users", "Preference, in plain words", "Deadline in ms, empty for none", "Recommend",
)  # fmt: skip
HEADINGS = ("Playground", "Ask", "Answer", "The same request by each version on trial", "How it was answered before")


def test_versions_stand_side_by_side_with_their_differences_in_words(browser: Browser, url: str) -> None:
    browser.open(f"{url}/play?{LINK.replace('&ask', '&compare')}")
    browser.wait(f"{STATUS}.includes('in the same place')")
    replies = {
        arm: httpx.post(f"{url}/v1/recommend", json={**ASK, "arm": arm}).json() for arm in ("old", "new", "shadow")
    }
    places = {arm: {row["item"]: i for i, row in enumerate(reply["items"], 1)} for arm, reply in replies.items()}
    tables = browser.value(ROWS.format("arms"))
    assert [table[0] for table in tables] == [
        "Arm old: retriever/1, early/1, late/1", "Arm new: retriever/1, early/1, late/2", "Shadow: retriever/1, early/1, late/2"
    ]  # fmt: skip
    assert places["new"] == places["shadow"] != places["old"]
    for arm, (_, head, rows) in zip(places, tables, strict=True):
        assert head == ("Elsewhere" if arm == "old" else "Beside old")
        assert [row[0] for row in rows] == list(places[arm])
        for item, words in rows:
            place, was = places[arm][item], places["old"].get(item)
            if arm == "old":
                expected = "in all" if item in places["new"] else "only here"
            elif was is None:
                expected = "not in old"
            else:
                expected = (
                    "same place"
                    if place == was
                    else f"{'up' if place < was else 'down'} {abs(place - was)}, there {was}"
                )
            assert words == expected, (arm, item)
    both = places["old"].keys() & places["new"].keys()
    same = sum(places["old"][item] == places["new"][item] for item in both)
    assert f"new shows {len(both)} of the 5 items of old, {same} in the same place" in browser.value(STATUS)


ROWS = """[...document.querySelectorAll('#{} table')].map((table) => [
  table.caption.textContent, table.tHead.rows[0].cells[3].textContent,
  [...table.tBodies[0].rows].map((row) => [row.querySelector('.name').textContent, row.cells[3].textContent])])"""


def test_earlier_answers_are_shown_newest_first_beside_the_present_one(browser: Browser, url: str) -> None:
    before = [httpx.post(f"{url}/v1/recommend", json={**ASK, "user": "eve", "k": k}).json() for k in (2, 3)]
    browser.open(f"{url}/play?{LINK}&user=eve&before")
    browser.wait(f"{STATUS}.includes('2 earlier answers')")
    tables = browser.value(ROWS.format("answers"))
    assert [[row[0] for row in rows] for _, _, rows in tables] == [
        [item["item"] for item in reply["items"]] for reply in reversed(before)
    ]
    for caption, head, rows in tables:
        assert caption.endswith(", the same question")
        assert f"arm {before[0]['arm']}" in caption
        assert head == "Beside the answer above"
        assert [words for _, words in rows] == ["same place"] * len(rows)
    assert browser.value("document.getElementById('earlier-of').textContent") == "The newest answers to user eve."


def test_feedback_that_is_refused_is_told_by_its_outcome(browser: Browser, url: str) -> None:
    browser.open(f"{url}/play?{LINK}&user=zoe")
    browser.wait(f"{STATUS}.includes('items in')")
    browser.value("tell(document.body, {request: '0', item: 'item-3', labels: {click: 1}}, 'click: item-3')")
    assert browser.value(STATUS).startswith("Feedback unknown. click: item-3. 404: This item was not shown")


def test_without_a_log_or_an_experiment_there_are_no_such_buttons(folder: Path, small_log: Path) -> None:
    parts = small_parts(folder / "plain", small_log)
    stages = PlainStages(parts.references(), folder / "plain")
    service = WithTraffic(served_cascade(parts.references(), stages), stages, LocalTraffic(folder / "unused"))
    with served(build_cascade_app(service, ServingMetrics(), ServiceLimits())) as plain:
        page = browse(f"{plain}/play", "--dump-dom")
    for name in ("compare", "before"):
        assert f'id="{name}" class="second" hidden' in page
