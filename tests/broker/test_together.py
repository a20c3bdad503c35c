"""Questions that are asked together: one round, an answer of its own for each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from sqlalchemy.exc import OperationalError

from broker.together import Together


async def test_questions_that_come_while_one_is_asked_go_in_one_round() -> None:
    rounds: list[list[int]] = []
    doubled: Together[int, int]

    async def ask(questions: Sequence[int]) -> list[int | Exception]:
        rounds.append([*questions])
        await asyncio.sleep(0)
        return [2 * each for each in questions]

    doubled = Together(ask, most=3)
    assert await asyncio.gather(*map(doubled, range(5))) == [0, 2, 4, 6, 8]
    assert rounds == [[0, 1, 2], [3, 4]]


async def test_an_answer_is_never_older_than_its_question() -> None:
    """What is revoked while a round is under way refuses who asks after it."""
    is_revoked, asked, go_on = False, asyncio.Event(), asyncio.Event()

    async def ask(questions: Sequence[str]) -> list[bool | Exception]:
        seen = is_revoked
        asked.set()
        await go_on.wait()
        return [seen for _ in questions]

    revoked = Together(ask, most=9)
    early = asyncio.create_task(revoked("early"))
    await asked.wait()
    is_revoked = True
    late = asyncio.create_task(revoked("late"))
    await asyncio.sleep(0)
    go_on.set()
    assert (await early, await late) == (False, True)


async def test_what_is_wrong_with_one_question_is_not_the_others_trouble() -> None:
    async def ask(questions: Sequence[int]) -> list[int | Exception]:
        return [10 // each for each in questions]

    tenth: Together[int, int] = Together(ask, most=9)
    answers = await asyncio.gather(*map(tenth, (5, 0, 2)), return_exceptions=True)
    assert answers[0] == 2 and isinstance(answers[1], ZeroDivisionError) and answers[2] == 5


async def test_a_database_that_is_away_is_asked_once_and_not_by_each_of_a_hundred() -> None:
    """The fallback began a transaction for each question at once: in an outage, or after one deadlock, all connections."""
    rounds: list[int] = []

    async def ask(questions: Sequence[int]) -> list[int | Exception]:
        rounds.append(len(questions))
        raise OperationalError("SELECT 1", {}, Exception("the connection was lost"))

    away: Together[int, int] = Together(ask, most=100)
    answers = await asyncio.gather(*map(away, range(100)), return_exceptions=True)
    assert rounds == [100]
    assert all(isinstance(each, OperationalError) for each in answers)


async def test_a_wrong_question_among_many_is_found_with_one_transaction_at_a_time() -> None:
    under_way, most_at_once, rounds = 0, 0, 0

    async def ask(questions: Sequence[int]) -> list[int | Exception]:
        nonlocal under_way, most_at_once, rounds
        under_way, rounds = under_way + 1, rounds + 1
        most_at_once = max(most_at_once, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return [10 // each for each in questions]

    tenth: Together[int, int] = Together(ask, most=100)
    answers = await asyncio.gather(*(tenth(0 if n == 37 else 5) for n in range(100)), return_exceptions=True)
    assert [n for n, each in enumerate(answers) if each != 2] == [37]
    assert most_at_once == 1 and rounds <= 15, "by halves: 2 log n questions, not n"


async def test_an_asker_who_leaves_takes_nobody_along() -> None:
    go_on = asyncio.Event()

    async def ask(questions: Sequence[int]) -> list[int | Exception]:
        await go_on.wait()
        return [*questions]

    same: Together[int, int] = Together(ask, most=9)
    leaving, staying = asyncio.create_task(same(1)), asyncio.create_task(same(2))
    await asyncio.sleep(0)
    leaving.cancel()
    go_on.set()
    assert await staying == 2
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await asyncio.sleep(0)
    assert await same(3) == 3, "it is asked again after it was idle"
