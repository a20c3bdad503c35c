"""What the settings say of a model for policies does not get in the way of serving it."""

from __future__ import annotations

from broker.model_set import model_profiles
from broker.model_settings import ModelSettings
from broker.settings import Settings


def test_a_model_may_say_its_publisher_licence_and_cost_and_is_served() -> None:
    stated = ModelSettings(
        engine="command",
        argv=("serve", "{host}", "{port}"),
        publisher="acme",
        licence="Apache-2.0",
        costly=True,
        launches=("process",),
    )
    assert "tiny" in model_profiles(Settings(models={"tiny": stated}))
