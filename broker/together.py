"""Many small questions asked at the same time become one question: what costs the database a round trip is asked once.

An answer is never older than its question: a question joins the next round, not the one that is under way. While nobody
else asks, it is asked at once and alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

from broker.database import UNAVAILABLE

Q = TypeVar("Q")
A = TypeVar("A")


class Together(Generic[Q, A]):
    """Calls of one kind. `ask` is given up to `most` questions and returns their answers in the same order; an answer that is
    an exception is raised to its asker. When `ask` raises, the round is asked again in halves, one after the other, until what
    is wrong with one question is nobody else's trouble. So it must be safe to ask twice. A database that is away is everybody's
    trouble, and asking it more would be a storm: all get that error.

    One round is under way at a time. A caller that is cancelled leaves; the round goes on for the others.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[Q]], Awaitable[Sequence[A | Exception]]],
        *,
        most: int,
    ) -> None:
        self._ask = ask
        self._most = most
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._rounds: asyncio.Task[None] | None = None

    async def __call__(self, question: Q) -> A:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[A] = loop.create_future()
        self._waiting.append((question, answer))
        if self._rounds is None:
            # of no request in particular: what the first asker binds to the log is not the others'
            self._rounds = loop.create_task(self._run(), context=Context())
        return await answer

    async def _run(self) -> None:
        asked: Sequence[tuple[Q, asyncio.Future[A]]] = ()
        try:
            while self._waiting:
                asked, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                answers = await self._answers([question for question, _ in asked])
                for (_, waiting), answer in zip(asked, answers, strict=True):
                    _hand_over(waiting, answer)
        finally:
            self._rounds = None
            for _, waiting in (*asked, *self._waiting):
                waiting.cancel()  # only of a round that was broken off; the others have their answers
            self._waiting = []

    async def _answers(self, questions: Sequence[Q]) -> Sequence[A | Exception]:
        try:
            return await self._ask(questions)
        except UNAVAILABLE as error:
            return [error] * len(questions)
        except Exception as error:  # noqa: BLE001 - whatever it is, each who asked gets it, or an answer after all
            if len(questions) == 1:
                return [error]
        half = len(questions) // 2
        return [*await self._answers(questions[:half]), *await self._answers(questions[half:])]


def _hand_over(waiting: asyncio.Future[A], answer: A | Exception) -> None:
    if waiting.done():
        return
    if isinstance(answer, Exception):
        waiting.set_exception(answer)
    else:
        waiting.set_result(answer)
