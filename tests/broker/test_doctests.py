"""The examples in the docstrings are true."""

from __future__ import annotations

import doctest

import pytest

from broker import deliveries, egress
from broker.api import events
from broker.compliance import hello


@pytest.mark.parametrize("module", [deliveries, egress, events, hello])
def test_the_examples_in_docstrings_are_true(module: object) -> None:
    tried = doctest.testmod(module)  # type: ignore[arg-type]
    assert tried.attempted
    assert not tried.failed
