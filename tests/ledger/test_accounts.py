"""The chart of accounts."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import accounts
from ledger.errors import UnknownAccount

# beancount's own rule for an account component
BEANCOUNT = re.compile(r"[A-Z0-9][A-Za-z0-9-]*")
NAMES = st.text(alphabet=st.sampled_from("abcXYZ019._-/ ü"), min_size=1, max_size=12) | st.text(min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("market", "pricing", "account"),
    [
        ("sandbox", "on_demand", "Expenses:Compute:OnDemand:Sandbox"),
        ("sandbox", "spot", "Expenses:Compute:Spot:Sandbox"),
        ("vast.ai", "bid", "Expenses:Compute:Spot:Vast-ai"),  # a bid is a spot price of one's own making
        ("aws", "reserved", "Expenses:Compute:Committed:Aws"),
        ("prime-intellect", "token", "Expenses:Compute:Tokens:Prime--intellect"),
        ("local", "on_demand", "Expenses:Compute:Local:Local"),  # nobody invoices our own machine
        ("hosts", "on_demand", "Expenses:Compute:Local:Hosts"),
    ],
)
def test_instance_time_has_an_account_by_pricing_and_market(market: str, pricing: str, account: str) -> None:
    assert accounts.compute(market, pricing) == account
    accounts.check_account(account)


def test_an_unknown_pricing_is_refused_and_named() -> None:
    with pytest.raises(UnknownAccount, match="'barter'"):
        accounts.compute("sandbox", "barter")


@pytest.mark.parametrize(
    "account", ["", "Expenses", "Expenses:Compute:Cheap:Aws", "Memo:Budget:", "Memo:Budget:demo", "Assets:Cash"]
)
def test_what_is_not_in_the_chart_is_refused(account: str) -> None:
    with pytest.raises(UnknownAccount):
        accounts.check_account(account)


@settings(deadline=None)
@given(NAMES, NAMES)
def test_two_names_never_share_an_account_and_every_name_is_a_beancount_component(one: str, other: str) -> None:
    """Two projects in one account would share a budget."""
    assert BEANCOUNT.fullmatch(accounts.component(one))
    accounts.check_account(accounts.budget(one))
    assert (accounts.component(one) == accounts.component(other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"), [("vast.ai", "vast-ai"), ("a", "A"), ("a_b", "a-b"), ("a_b", "a b"), ("a.-b", "a-.b")]
)
def test_names_that_look_alike_have_accounts_of_their_own(one: str, other: str) -> None:
    assert accounts.component(one) != accounts.component(other)
