"""Every market that this project knows of, built or not, with its class and, where it is not built, the reason.

Sources: markets' own documents as recorded in 2026-11; a market that is not here is one that nobody looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

MarketClass = Literal["hyperscaler", "neocloud", "aggregator", "decentralized", "token", "own", "local", "sandbox"]


@dataclass(frozen=True, slots=True)
class Known:
    """One market. `every_s` is how often its prices are worth asking for: hyperscalers' lists change by the day, availability
    at marketplaces by the minute. `login`: whether prices need credentials. `missing` is why no adapter reads its prices."""

    name: str
    market_class: MarketClass
    every_s: float = 300
    login: Literal["none", "optional", "needed"] = "needed"
    missing: str | None = None


def _built(
    market_class: MarketClass, every_s: float, login: Literal["none", "optional", "needed"], *names: str
) -> list[Known]:
    return [Known(name, market_class, every_s, login) for name in names]


_NOT_BUILT: Mapping[str, tuple[MarketClass, str]] = MappingProxyType(
    {
        "nebius": ("neocloud", "gRPC only, and prices only by an estimate per shape and project; hand in a rate card"),
        "crusoe": ("neocloud", "no price in its API, prices stand on a web page; hand in a rate card"),
        "hyperstack": ("neocloud", "flavours and prices are joined by the GPU's name alone; not built yet, hand in a rate card"),
        "digitalocean": ("neocloud", "prices need a key, and GPU droplets are few; not built yet, hand in a rate card"),
        "coreweave": ("neocloud", "no price API: use the market kubernetes with a rate card"),
        "ovh": ("neocloud", "signed requests of its own, and the price catalogue is unverified; hand in a rate card"),
        "cudo": ("neocloud", "its document is of 2024 and no longer checked; hand in a rate card"),
        "jarvislabs": ("neocloud", "no published document of its API; hand in a rate card"),
        "hotaisle": ("neocloud", "not built yet; hand in a rate card"),
        "fluidstack": ("neocloud", "its API of 2024 is retired"),
        "paperspace": ("neocloud", "no published document of its API"),
        "daytona": ("neocloud", "sandboxes for code, GPU prices only by a sample; not built"),
        "tensordock": ("decentralized", "its API of 2024 may no longer answer, v2 is undocumented"),
        "massedcompute": ("neocloud", "not built yet; prices through prime-intellect"),
        "latitude": ("neocloud", "not built yet; prices through prime-intellect"),
        **dict.fromkeys(
            ("dc_gnu", "dc_roan", "dc_wildebeest", "oblivus", "primecompute"),
            ("neocloud", "sold by prime-intellect under this name; prices through prime-intellect"),
        ),
        "modal": ("neocloud", "runs functions of its own SDK, not containers that dial out; hand in a rate card"),
        "replicate": ("neocloud", "lists hardware without prices, runs its own model format"),
        "beam": ("neocloud", "runs functions of its own SDK"),
        "blaxel": ("neocloud", "runs agents and functions of its own format"),
        "cloudrift": ("decentralized", "not built yet; hand in a rate card"),
        "nosana": ("decentralized", "jobs and results are public by default, no country of a host; not built"),
        "hyperbolic": ("decentralized", "no country, no attestation, machines by SSH alone; not built yet"),
        "lium": ("decentralized", "miners' claims of place; not built yet"),
        "clore": ("decentralized", "prices in coins per day, a host's own claim of its country; not built yet"),
        "phala": ("decentralized", "confidential VMs are provisioned within a day, not a batch's minutes; not built yet"),
        "render": ("decentralized", "neither prices nor a choice of place in its documents"),
        "aethir": ("decentralized", "no public API for developers"),
        "spheron": ("decentralized", "moved to an API without a published document"),
        "golem": ("decentralized", "needs a local daemon, a wallet and images of its own format; no country of a node"),
        "iexec": ("decentralized", "no GPUs"),
        "livepeer": ("decentralized", "requests to models that its network chooses; no placement"),
        "lilypad": ("decentralized", "runs modules of its own list only; last release 2025-07"),
        "chutes": ("decentralized", "runs templates of its own SDK; not built"),
        "computehorde": ("decentralized", "sells to validators of its own network only"),
    }
)  # fmt: skip


DIRECTORY: Mapping[str, Known] = MappingProxyType(
    {
        each.name: each
        for each in (
            *_built("local", 60, "none", "local"),
            *_built("sandbox", 60, "none", "sandbox"),
            *_built("own", 60, "none", "hosts"),
            *_built("own", 60, "needed", "kubernetes"),
            *_built("hyperscaler", 900, "needed", "aws"),
            *_built("hyperscaler", 3600, "needed", "gcp"),
            *_built("hyperscaler", 3600, "none", "azure", "oci"),
            *_built("neocloud", 300, "needed", "lambda", "verda", "scaleway", "koyeb"),
            *_built("neocloud", 300, "none", "runpod", "thunder"),
            *_built("neocloud", 900, "none", "vultr"),
            *_built("aggregator", 300, "needed", "shadeform", "prime-intellect"),
            *_built("decentralized", 300, "none", "vast", "akash"),
            *_built("decentralized", 300, "needed", "salad", "fluence", "io-net"),
            *_built("token", 3600, "none", "openrouter"),
            *_built(
                "token", 86_400, "none", "together", "groq", "cerebras", "sambanova", "deepseek", "fireworks",
                "akashml", "io-intelligence", "orcarouter", "litellm", "portkey", "cloudflare", "openai", "azure-openai",
                "bedrock",
            ),
            *(Known(name, kind, missing=reason) for name, (kind, reason) in _NOT_BUILT.items()),
        )
    }
)  # fmt: skip


def class_of(market: str) -> MarketClass:
    """The class of a market; a name that nobody knows is somebody's own rate card.

    >>> class_of("vast"), class_of("our-cluster")
    ('decentralized', 'own')
    """
    known = DIRECTORY.get(market)
    return known.market_class if known else "own"
