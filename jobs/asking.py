"""What jobs that ask a language model tell of it: the estimate before, prompts of a dry run, and the bill on the way."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from rayrec.text.answer_store import AnswerStore
from rayrec.text.asking import Bill, Reply, ask_all, estimate
from rayrec.text.chat_endpoint import EndpointConfig

T = TypeVar("T")


def asked(
    questions: Sequence[str], accept: Callable[[str, str], T], endpoint: EndpointConfig, cache: Path, *,
    what: str, answers: int, shown: int | None,
) -> list[Reply[T]] | None:  # fmt: skip
    """A reply to each question, in their order, by ``ask_all`` with the answers of ``cache``.

    what: the questions are counted as. shown: None = ask; else a dry run, which prints so many prompts, asks nothing and gives
    None. Raises ChatError when nothing can be answered.
    """
    with AnswerStore(cache) as store:
        before = estimate(questions, endpoint, store)
        print(
            f"{len(questions):,} {what}, {before.cached:,} answers known; {before.questions:,} to ask: about "
            f"{before.input_tokens:,} tokens in, at most {before.most_output_tokens:,} out, cost at most {before.most_cost:.4f}"
        )
        if shown is not None:
            for question in questions[:shown]:
                print(f"--- prompt\n{question}")
            return None
        replies, bill = ask_all(questions, accept, endpoint, store, answers=answers, progress=_say)
    _say(len(questions), len(questions), bill)
    return replies


def _say(done: int, total: int, bill: Bill) -> None:
    if done % 100 == 0 or done == total:
        print(
            f"{done:,} of {total:,}: {bill.asked:,} paid, {bill.cached:,} known, {bill.refused:,} refused, "
            f"{bill.requests:,} requests, {bill.input_tokens:,} + {bill.output_tokens:,} tokens"
            + (f" ({bill.uncounted:,} answers not counted by the endpoint)" if bill.uncounted else "")
            + f", cost {bill.cost:.4f}",
            flush=True,
        )
