"""A batch whose residency does not allow the place of the object store is refused at validation, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.control.validate import Validator
from broker.settings import ObjectSettings, Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path, objects=ObjectSettings(country="US", operator="us-hoster"))


@pytest.mark.parametrize("wishes", [{}, {"on_infeasible": "queue"}])
async def test_a_batch_that_may_not_lie_in_the_store_fails_with_the_reason_and_a_quote_says_so(
    server: Any, wishes: dict[str, str]
) -> None:
    batch = await server.new_batch(x_broker={"residency": ["DE"], **wishes})
    await Validator(server.services).step()
    shown = (await server.call("GET", f"/v1/batches/{batch['id']}")).json
    assert shown["status"] == "failed"
    [error] = shown["errors"]["data"]
    assert error["code"] == "infeasible_residency"
    assert "country US is not one of DE" in error["message"]
    body = {"input_file_id": batch["input_file_id"], "x_broker": {"residency": ["DE"]}}
    quote = (await server.call("POST", "/v1/quotes", json=body)).json
    assert (quote["feasible"], quote["waiting_on"], quote["usd"]) == (False, "residency", None)
    assert "country US is not one of DE" in quote["reasons"][0]


async def test_a_batch_that_may_lie_there_is_not_refused_for_it(server: Any) -> None:
    batch = await server.new_batch(x_broker={"residency": ["US"], "on_infeasible": "queue"})
    await Validator(server.services).step()
    assert (await server.call("GET", f"/v1/batches/{batch['id']}")).json["status"] == "in_progress"
