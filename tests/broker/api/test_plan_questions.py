"""Another world asked for over HTTP: what is wrong with a question is said, with the field and how to mend it."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({"witout": ["aws"]}, "witout"),  # a word that there is not
        ({"without": "aws"}, "without"),  # a text, not a list
        ({"without": ["mars"]}, "without 'mars' is neither a market nor"),
        ({"max_rtt_ms": {"*": "near"}}, "max_rtt_ms"),
        ({"max_rtt_ms": {"*": -1}}, "-1 ms are not between 0"),
        ({"max_rtt_ms": {"batch_nobody": 20}}, "max_rtt_ms names work 'batch_nobody', which is not in the queue"),
        ({"rtt_ms": {"mars/": 20}}, "rtt_ms 'mars/'"),
        ({"price_factor": {"*": "1e900"}}, "price_factor '1e900' is too much"),  # no number that a snapshot can carry
        ({"price_factor": {"*": "NaN"}}, "price_factor 'NaN' is not a positive number"),
        ({"later_hours": {"*": 1e300}}, "later_hours '*'"),
        ({"max_usd": {"*": "1e999999"}}, "max_usd '1e999999' is too much"),  # a million digits
        ({"countries": {"*": ["Germany"]}}, "did you mean DE"),
        ({"policies": {"*": "rules: ["}}, "policies '*' is no policy document"),
        (
            {"policies": {"*": "language: 1\npolicy: p\nversion: 1\nrules:\n  - {id: a, effekt: allow}\n"}},
            "line 5, column 5: rules lacks 'effect'",
        ),
    ],
)
async def test_what_is_wrong_with_a_question_is_said(server: Any, question: dict[str, Any], said: str) -> None:
    found = await server.call("POST", "/v1/plan", json=question)
    assert found.status == 400, found.json
    assert said in found.json["error"]["message"] + str(found.json["error"]["param"])
