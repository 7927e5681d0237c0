"""The language model's client against a server that speaks the protocol and fails in every way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from rayrec.text.answer_store import AnswerStore, answer_key
from rayrec.text.asking import ask_all, estimate
from rayrec.text.chat_endpoint import ChatError, EndpointConfig, retry_after
from rayrec.text.preferences import Names, parsed
from rayrec.typed_json import ConfigError
from tests.llm_stub import GOOD, Behaviour, Handler, Stub, first_times, running_stub, said

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def stub() -> Iterator[Stub]:
    with running_stub() as found:
        yield found


def endpoint(stub: Stub, **changes: Any) -> EndpointConfig:
    plain = EndpointConfig(
        stub.url, "stub", key_variable="STUB_KEY", first_wait=0.01, longest_wait=2.0, timeout=0.5, tries=4,
        input_price=1.0, output_price=2.0,
    )  # fmt: skip
    return replace(plain, **changes)


def accept(question: str, answer: str) -> tuple[str, ...]:
    return parsed(answer, Names(["Scotch"]))


def cut_in_the_middle(handler: Handler, question: str, before: int) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True
    return True


def slow(handler: Handler, question: str, before: int) -> bool:
    time.sleep(0.8)
    return True


FIVE_WORDS = json.dumps({"preferences": ["Find a b", "Glue", "Find c d", "Find d e", "Find e f"]})
BRAND = json.dumps({"preferences": ["Find Scotch tape", "Find b c", "Find c d", "Find d e", "Find e f"]})


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(said(GOOD[:-5]), id="malformed JSON"),
        pytest.param(said('{"preferences": ["Find a b"]}'), id="too few"),
        pytest.param(said(FIVE_WORDS), id="a single word"),
        pytest.param(said(BRAND), id="a brand"),
    ],
)
def test_a_refused_answer_is_asked_for_again_with_the_reason_and_both_are_on_the_bill(
    stub: Stub, tmp_path: Path, behaviour: Behaviour
) -> None:
    stub.behaviours["who?"] = first_times(1, behaviour)
    with AnswerStore(tmp_path / "answers.db") as store:
        replies, bill = ask_all(["who?"], accept, endpoint(stub), store)
        assert replies[0].value == ("Find a b", "Find b c", "Find c d", "Find d e", "Find e f")
        assert (bill.asked, bill.refused, bill.input_tokens, bill.output_tokens) == (2, 1, 200, 100)
        assert bill.cost == pytest.approx((200 * 1.0 + 100 * 2.0) / 1e6)
        assert "That answer was refused: " in stub.bodies[1]["messages"][2]["content"]
        again, bill = ask_all(["who?"], accept, endpoint(stub), store)
    assert again == replies
    assert (bill.asked, bill.cached, bill.cost) == (0, 2, 0.0)  # the refused one is not paid for again either
    assert stub.paid["who?"] == 2


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(slow, id="time-out"),
        pytest.param(lambda h, q, b: h.send(500, b"down"), id="500"),
        pytest.param(lambda h, q, b: h.send(503, b""), id="503"),
        pytest.param(lambda h, q, b: h.send(429, b"slower"), id="429 without Retry-After"),
        pytest.param(lambda h, q, b: h.send(429, b"slower", Retry_After="0"), id="429 with Retry-After"),
        pytest.param(cut_in_the_middle, id="cut connection"),
        pytest.param(lambda h, q, b: h.send(200, b"<html>"), id="no JSON"),
        pytest.param(lambda h, q, b: h.send(200, b'{"choices": []}'), id="no choice"),
        pytest.param(lambda h, q, b: h.send(200, b"x" * 3_000), id="too large"),
    ],
)
def test_a_request_that_fails_on_its_way_is_sent_again_and_paid_once(
    stub: Stub, tmp_path: Path, behaviour: Behaviour
) -> None:
    stub.behaviours["who?"] = first_times(2, behaviour)
    with AnswerStore(tmp_path / "answers.db") as store:
        replies, bill = ask_all(["who?", "what?"], accept, endpoint(stub, largest_answer=2_000), store)
    assert all(reply.value is not None for reply in replies)
    assert (bill.asked, bill.requests) == (2, 4)
    assert stub.paid == {"who?": 1, "what?": 1}


def test_no_one_asks_before_a_retry_after_is_over(stub: Stub, tmp_path: Path) -> None:
    stub.behaviours["q0"] = first_times(1, lambda h, q, b: h.send(429, b"slower", Retry_After="1"))
    with AnswerStore(tmp_path / "answers.db") as store:
        _, bill = ask_all([f"q{i}" for i in range(4)], accept, endpoint(stub, concurrency=1), store)
    assert bill.asked == 4
    assert stub.moments[1] - stub.moments[0] >= 0.99
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 28 < (retry_after(later) or 0) <= 30
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert (retry_after("1.5"), retry_after(None), retry_after("soon")) == (1.5, None, None)


def test_a_wait_beyond_the_longest_and_a_wrong_key_end_the_run_and_keep_what_was_answered(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_KEY", KEY)
    for behaviour, problem in (
        (lambda h, q, b: h.send(429, b"", Retry_After="3600"), "asks to wait 3,600 s"),
        (lambda h, q, b: h.send(401, f"bad key {KEY}".encode()), "status 401: bad key (key)"),
        (lambda h, q, b: h.send(302, b"", Location="http://127.0.0.1:1/"), "status 302"),
    ):
        stub.behaviours["b"] = behaviour
        with AnswerStore(tmp_path / "answers.db") as store:
            with pytest.raises(ChatError) as raised:
                ask_all(["a", "b", "c"], accept, endpoint(stub, concurrency=1), store)
            assert problem in str(raised.value)
            assert KEY not in str(raised.value)
            assert store.get(answer_key(endpoint(stub).request([{"role": "user", "content": "a"}])), 0) is not None
    assert stub.paid["a"] == 1
    assert set(stub.keys) == {f"Bearer {KEY}"}
    assert KEY.encode() not in (tmp_path / "answers.db").read_bytes()


def test_what_is_under_way_when_the_run_ends_is_received_and_nothing_more_is_asked(stub: Stub, tmp_path: Path) -> None:
    under_way, ended = threading.Event(), threading.Event()

    def late(handler: Handler, question: str, before: int) -> bool:
        under_way.set()
        assert ended.wait(20)
        time.sleep(0.1)
        return False

    def wrong_key(handler: Handler, question: str, before: int) -> bool:
        assert under_way.wait(20)
        handler.send(401, b"no")
        ended.set()
        return True

    stub.behaviours = {"late": late, "ends": wrong_key}
    config = endpoint(stub, concurrency=2, timeout=30.0)
    with AnswerStore(tmp_path / "answers.db") as store:
        with pytest.raises(ChatError, match="status 401: no"):
            ask_all(["late", "ends", "waits", "too"], accept, config, store)
        assert stub.paid == {"late": 1}
        assert stub.seen.keys() == {"late", "ends"}
        stub.behaviours = {}
        replies, bill = ask_all(["late", "ends", "waits", "too"], accept, config, store)
    assert all(reply.value is not None for reply in replies)
    assert (bill.cached, bill.asked) == (1, 3)
    assert set(stub.paid.values()) == {1}


def test_a_question_without_an_acceptable_answer_is_told_and_holds_up_no_other(stub: Stub, tmp_path: Path) -> None:
    stub.behaviours = {
        "never": said("no"), "down": lambda h, q, b: h.send(500, b"down"), "long": lambda h, q, b: h.send(400, b"too long"),
    }  # fmt: skip
    with AnswerStore(tmp_path / "answers.db") as store:
        replies, bill = ask_all(["never", "down", "long", "fine"], accept, endpoint(stub, tries=2), store, answers=2)
    assert [reply.value is None for reply in replies] == [True, True, True, False]
    assert replies[0].problem == "2 answers refused; the last: it is not JSON"
    assert "no answer in 2 tries; the last: status 500: down" in replies[1].problem
    assert "status 400: too long" in replies[2].problem
    assert bill.asked == 3


def test_equal_questions_are_paid_once_and_no_more_than_the_limit_are_under_way(stub: Stub, tmp_path: Path) -> None:
    def wait(handler: Handler, question: str, before: int) -> bool:
        time.sleep(0.05)
        return False

    stub.behaviours["*"] = wait
    questions = [f"q{i % 10}" for i in range(40)]
    with AnswerStore(tmp_path / "answers.db") as store:
        before = estimate(questions, endpoint(stub), store)
        replies, bill = ask_all(questions, accept, endpoint(stub, concurrency=3), store)
        after = estimate(questions, endpoint(stub), store)
    assert len(replies) == 40
    assert bill.asked == 10
    assert max(stub.paid.values()) == 1
    assert stub.most_at_once == 3
    assert (before.questions, before.cached, after.questions, after.cached, after.most_cost) == (10, 0, 0, 10, 0.0)
    assert before.most_cost == pytest.approx((10 * 1 * 1.0 + 10 * 512 * 2.0) / 1e6)


ASKER = """
import sys
from pathlib import Path
from rayrec.text.answer_store import AnswerStore
from rayrec.text.asking import ask_all
from rayrec.text.chat_endpoint import EndpointConfig
from rayrec.text.preferences import Names, parsed
with AnswerStore(Path(sys.argv[2])) as store:
    ask_all([f"q{i}" for i in range(30)], lambda q, a: parsed(a, Names()), EndpointConfig(sys.argv[1], "stub"), store)
"""


def test_a_killed_run_goes_on_and_nothing_is_paid_twice_or_lost(stub: Stub, tmp_path: Path) -> None:
    stuck, release = threading.Event(), threading.Event()

    def hold(handler: Handler, question: str, before: int) -> bool:
        if sum(stub.paid.values()) < 12 or release.is_set():
            return False
        stuck.set()
        release.wait(20)
        return True  # nothing was answered, nothing is paid

    stub.behaviours["*"] = hold
    file = tmp_path / "answers.db"
    child = subprocess.Popen([sys.executable, "-c", ASKER, stub.url, str(file)], env=dict(os.environ))
    assert stuck.wait(30)
    time.sleep(0.3)  # what is on its way arrives
    with pytest.raises(ConfigError, match="another process is asking"):
        AnswerStore(file)
    child.send_signal(signal.SIGKILL)
    child.wait()
    release.set()
    paid = dict(stub.paid)
    assert len(paid) >= 12
    config = EndpointConfig(stub.url, "stub")
    with AnswerStore(file) as store:
        replies, bill = ask_all([f"q{i}" for i in range(30)], accept, config, store)
    assert all(reply.value is not None for reply in replies)
    assert (bill.cached, bill.asked) == (len(paid), 30 - len(paid))
    assert set(stub.paid.values()) == {1}


def test_an_endpoint_that_does_not_count_tokens_is_told_and_a_file_that_is_no_store_refused(
    stub: Stub, tmp_path: Path
) -> None:
    body = json.dumps({"choices": [{"message": {"content": GOOD}}]}).encode()
    stub.behaviours["who?"] = lambda h, q, b: h.send(200, body)
    with AnswerStore(tmp_path / "answers.db") as store:
        _, bill = ask_all(["who?"], accept, endpoint(stub), store)
    assert (bill.uncounted, bill.input_tokens, bill.output_tokens) == (1, 1, -(-len(GOOD) // 4))
    (tmp_path / "wrong.db").write_text("this is no database, not at all " * 10)
    with pytest.raises(ConfigError, match="not a cache of answers"):
        AnswerStore(tmp_path / "wrong.db")
    with pytest.raises(ValueError, match="url must start with"):
        EndpointConfig("ftp://x", "stub")
