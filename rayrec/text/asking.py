"""Many questions to a language model, each answered once and paid once: from the store where it has the answer, else asked.

An answer that ``accept`` refuses is kept in the store and asked for again, with what was wrong with it, up to ``answers`` times.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rayrec.text.answer_store import Answer, AnswerStore, answer_key
from rayrec.text.chat_endpoint import ChatEndpoint, ChatError, EndpointConfig, Message, estimated_tokens

T = TypeVar("T")


class AnswerError(ValueError):
    """An answer that does not obey the rules; the text goes back to the model with the next question."""


@dataclass(frozen=True)
class Reply(Generic[T]):
    """value: the accepted answer, or None and ``problem`` says why there is none."""

    value: T | None
    problem: str = ""


@dataclass
class Bill:
    """asked, cached: answers that were paid now, and that were in the store. requests: sent, failed ones included.

    uncounted: paid answers whose tokens the endpoint did not count, and are estimated. cost: of the paid ones.
    """

    asked: int = 0
    cached: int = 0
    refused: int = 0
    requests: int = 0
    uncounted: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0

    def add(self, answer: Answer, endpoint: EndpointConfig) -> None:
        self.asked += 1
        self.uncounted += not answer.counted
        self.input_tokens += answer.input_tokens
        self.output_tokens += answer.output_tokens
        self.cost += endpoint.cost(answer.input_tokens, answer.output_tokens)


@dataclass(frozen=True)
class Estimate:
    """Before anything is paid: questions that are not in the store, their tokens, and the most that answers can cost."""

    questions: int
    cached: int
    input_tokens: int
    most_output_tokens: int
    most_cost: float


def estimate(questions: Sequence[str], endpoint: EndpointConfig, store: AnswerStore) -> Estimate:
    """If every first answer is accepted. Equal questions count once."""
    unique = list(dict.fromkeys(questions))
    open_ones = [q for q in unique if store.get(answer_key(endpoint.request(_first(q))), 0) is None]
    given, written = sum(map(estimated_tokens, open_ones)), len(open_ones) * endpoint.max_tokens
    return Estimate(len(open_ones), len(unique) - len(open_ones), given, written, endpoint.cost(given, written))


def ask_all(
    questions: Sequence[str],
    accept: Callable[[str, str], T],
    endpoint: EndpointConfig,
    store: AnswerStore,
    *,
    answers: int = 3,
    progress: Callable[[int, int, Bill], None] = lambda done, total, bill: None,
) -> tuple[list[Reply[T]], Bill]:
    """A reply to each question, in their order; equal questions are asked once.

    accept: (question, answer) to the value; raises AnswerError. answers: most that are paid for one question.
    Raises ChatError when nothing can be answered (wrong key, address, model), as soon as what is under way has come: it may be
    paid for. What was answered stays in the store.
    """
    return asyncio.run(_ask_all(questions, accept, endpoint, store, answers, progress))


async def _ask_all(
    questions: Sequence[str], accept: Callable[[str, str], T], config: EndpointConfig, store: AnswerStore, answers: int,
    progress: Callable[[int, int, Bill], None],
) -> tuple[list[Reply[T]], Bill]:  # fmt: skip
    unique, bill = list(dict.fromkeys(questions)), Bill()
    replies: dict[str, Reply[T]] = {}
    hopeless: list[ChatError] = []
    waiting = iter(unique)

    async with ChatEndpoint(config) as endpoint:

        async def worker() -> None:
            for question in waiting:  # shared: each question has one worker
                try:
                    replies[question] = await _answered(question, accept, endpoint, store, answers, bill)
                except ChatError as error:
                    hopeless.append(error)  # later ones only say that nothing more is asked
                    return endpoint.stop()
                bill.requests = endpoint.requests
                progress(len(replies), len(unique), bill)

        workers = [asyncio.create_task(worker()) for _ in range(min(2 * config.concurrency, len(unique)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        bill.requests = endpoint.requests
        if hopeless:
            raise hopeless[0]
    return [replies[question] for question in questions], bill


async def _answered(
    question: str, accept: Callable[[str, str], T], endpoint: ChatEndpoint, store: AnswerStore, answers: int, bill: Bill
) -> Reply[T]:
    messages, problem = _first(question), ""
    key = answer_key(endpoint.config.request(messages))
    for turn in range(answers):
        answer = store.get(key, turn)
        if answer is None:
            try:
                answer = await endpoint.ask(messages)
            except ChatError as error:
                if error.hopeless:
                    raise
                return Reply(None, str(error))
            store.put(key, turn, answer)
            bill.add(answer, endpoint.config)
        else:
            bill.cached += 1
        try:
            return Reply(accept(question, answer.text))
        except AnswerError as error:
            problem = str(error)
            bill.refused += 1
        again = f"That answer was refused: {problem}. Answer the first message again, by all of its rules."
        messages = [
            *_first(question),
            {"role": "assistant", "content": answer.text},
            {"role": "user", "content": again},
        ]
    return Reply(None, f"{answers} answers refused; the last: {problem}")


def _first(question: str) -> list[Message]:
    return [{"role": "user", "content": question}]
