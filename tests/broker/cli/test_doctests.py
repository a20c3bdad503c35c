"""The examples in the docstrings of the command line are true."""

from __future__ import annotations

import doctest

import pytest

from broker.cli import exits, output, wishes


@pytest.mark.parametrize("module", [exits, output, wishes])
def test_the_examples_in_docstrings_are_true(module: object) -> None:
    tried = doctest.testmod(module)  # type: ignore[arg-type]
    assert tried.attempted
    assert not tried.failed
