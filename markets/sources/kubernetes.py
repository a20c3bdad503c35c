"""A Kubernetes cluster with GPUs, at the price of a rate card: CoreWeave, a managed one elsewhere, or one's own. Unverified
against a live cluster; Kubernetes' own client judges requests and answers.

Source: the Kubernetes API, `GET /api/v1/nodes` and `/api/v1/pods` (list with `limit` and `continue`). A cluster says what it has
and never what it costs: the rates are the operator's, per GPU and hour, by our name of the device or the node's instance type.
An offer is a pod with all GPUs of one node, or with as many as `counts` says; offers of one node share its GPUs, and each counts
them all. A slice (MIG) or a share of a device (time-slicing) is not a GPU: such nodes are listed and not chosen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal

import structlog

from markets.errors import NotAuthorized
from markets.facts.accelerators import identify
from markets.offer import AcceleratorKind, Offer
from markets.provider.api import ProviderApi, Reach
from markets.provider.listing import Place, Said, distinct, offer
from markets.provider.login import CredentialSource, bearer
from markets.provider.shape import Shape, rows

MARKET = "kubernetes"
LOGIN = bearer("token", is_optional=True)
PAGE = "500"
# What a pod that has ended had is free again.
LIVING = "status.phase!=Succeeded,status.phase!=Failed"
SOURCE = "Kubernetes /api/v1/nodes and the rate card"
REGION, ZONE = "topology.kubernetes.io/region", "topology.kubernetes.io/zone"
INSTANCE_TYPE = "node.kubernetes.io/instance-type"
# Labels that say which device it is, the most exact first: NVIDIA's GPU feature discovery, CoreWeave, GKE, Karpenter, AMD.
PRODUCTS = (
    "nvidia.com/gpu.product",
    "gpu.nvidia.com/model",
    "gpu.nvidia.com/class",
    "cloud.google.com/gke-accelerator",
    "karpenter.k8s.aws/instance-gpu-name",
    "amd.com/gpu.product-name",
)
MEMORY_MIB = "nvidia.com/gpu.memory"
RESOURCES: Mapping[str, AcceleratorKind] = {"nvidia.com/gpu": "nvidia", "amd.com/gpu": "amd"}
_log = structlog.get_logger("markets.kubernetes")


@dataclass(frozen=True, slots=True)
class RateCard:
    """What the operator of a cluster says of it. `usd_per_gpu_hour` is by our name of a device, or by instance type.

    `country` (and `regions`, region → country) is the operator's statement; None: unknown.
    """

    usd_per_gpu_hour: Mapping[str, Decimal]
    counts: tuple[int, ...] = ()
    country: str | None = None
    regions: Mapping[str, str] = field(default_factory=dict)
    operator: str | None = None
    home: str | None = None
    tolerations: frozenset[str] = frozenset({"nvidia.com/gpu", "amd.com/gpu"})


@dataclass(frozen=True, slots=True)
class Pool:
    """Nodes that are alike: what they are, and how many GPUs each has free. `problem`: why none of them is a whole GPU."""

    sku: str
    product: str
    kind: AcceleratorKind
    memory_mib: int
    per_node: int
    region: str | None
    zone: str | None
    problem: str | None = None


class KubernetesSource:
    name = MARKET

    def __init__(self, credentials: CredentialSource, reach: Reach, *, card: RateCard) -> None:
        self._api = ProviderApi(MARKET, reach, login=LOGIN, credentials=credentials)
        self._card = card

    async def offers(self) -> list[Offer]:
        """What is free is unknown where the log-in may list nodes and no pods."""
        at = datetime.now(UTC)
        nodes = await self._all("/api/v1/nodes")
        try:
            pods: list[Shape] | None = await self._all("/api/v1/pods", {"fieldSelector": LIVING})
        except NotAuthorized as refused:
            _log.warning("kubernetes.pods_unlisted", error=str(refused))
            pods = None
        return kubernetes_offers(nodes, pods, self._card, at)

    async def close(self) -> None:
        await self._api.close()

    async def _all(self, path: str, query: Mapping[str, str] | None = None) -> list[Shape]:
        async def ask(token: str) -> Shape:
            return await self._api.get(path, {**(query or {}), "limit": PAGE, **({"continue": token} if token else {})})

        def after(page: Shape) -> str | None:
            token = page["metadata"].get("continue")
            return token.text() if token and token.value else None

        return [item for page in await self._api.pages(ask, "", after) for item in page["items"].each()]


def kubernetes_offers(nodes: list[Shape], pods: list[Shape] | None, card: RateCard, at: datetime) -> list[Offer]:
    """One offer for each pool and size of pod. `pods` None: nobody knows what is free."""
    taken = None if pods is None else _taken(pods)
    pools: dict[Pool, dict[str, int]] = defaultdict(dict)
    for pool, name, usable in rows(nodes, lambda node: _pools(node, card)):
        free = pool.per_node - (taken or {}).get((name, pool.kind), 0)
        pools[pool][name] = max(0, free) if usable else 0
    is_counted = taken is not None
    return distinct(each for pool, free in pools.items() for each in _offers(pool, free.values(), is_counted, card, at))


def _offers(pool: Pool, free: Collection[int], is_counted: bool, card: RateCard, at: datetime) -> Iterator[Offer]:
    for count in sorted({each for each in card.counts or (pool.per_node,) if 1 <= each <= pool.per_node}):
        said = Said(
            market=MARKET,
            sku=f"{pool.sku}/{count}of{pool.per_node}",
            pricing="on_demand",
            launch="kubernetes",
            price=None,
            source=SOURCE,
            raw={"pool": pool.sku, "product": pool.product, "count": count},
            device=pool.product,
            count=count,
            memory_mib=pool.memory_mib,
            region=pool.region,
            zone=pool.zone,
            place=_place(pool, card),
            operator=card.operator,
            home=card.home,
            capacity=sum(each // count for each in free) if is_counted or not any(free) else None,
            not_for_sale=pool.problem,
        )
        device = identify(pool.product, count=count, memory_mib=pool.memory_mib or None).accelerator.name
        rate = card.usd_per_gpu_hour.get(device) or card.usd_per_gpu_hour.get(pool.sku)
        yield offer(replace(said, price=None if rate is None else rate * count), at)


def _pools(node: Shape, card: RateCard) -> Iterator[tuple[Pool, str, bool]]:
    """What a node is: nothing when it has no GPUs, and unusable when it takes no pods of ours."""
    metadata, status = node["metadata"], node["status"]
    labelled = metadata.get("labels")
    labels = dict(labelled.entries()) if labelled else {}
    name = metadata["name"].text()
    usable = _is_ready(status) and not _is_closed(node, card)
    for resource, amount in status["allocatable"].entries():
        kind, count = RESOURCES.get(resource), amount.whole() if resource in RESOURCES else 0
        if kind is None or count == 0:
            continue
        product = next((labels[label].text() for label in PRODUCTS if label in labels), resource)
        memory = labels.get(MEMORY_MIB)
        sku = labels[INSTANCE_TYPE].text() if INSTANCE_TYPE in labels else product
        yield (
            Pool(
                sku=sku,
                product=product.removesuffix("-SHARED").partition("-MIG-")[0].replace("-", " "),
                kind=kind,
                memory_mib=memory.whole() if memory else 0,
                per_node=count,
                region=labels[REGION].text() if REGION in labels else None,
                zone=labels[ZONE].text() if ZONE in labels else None,
                problem=_slice(product, labels),
            ),
            name,
            usable,
        )


def _slice(product: str, labels: Mapping[str, Shape]) -> str | None:
    replicas = labels.get("nvidia.com/gpu.replicas")
    if product.endswith("-SHARED") or (replicas and replicas.whole() > 1):
        return (
            f"{product}: its GPUs are shared by time (replicas: {replicas and replicas.whole()}); a share is not a GPU"
        )
    if "-MIG-" in product:
        return f"{product}: its GPUs are slices (MIG); a slice is not a GPU"
    return None


def _is_ready(status: Shape) -> bool:
    conditions = status.get("conditions")
    return conditions is not None and any(
        each["type"].value == "Ready" and each["status"].value == "True" for each in conditions.each()
    )


def _is_closed(node: Shape, card: RateCard) -> bool:
    """Cordoned, or tainted with what a pod of ours would not tolerate."""
    spec = node.get("spec")
    if spec is None:
        return False
    cordoned, taints = spec.get("unschedulable"), spec.get("taints")
    if cordoned and cordoned.flag():
        return True
    return any(
        each["effect"].text() in ("NoSchedule", "NoExecute") and each["key"].text() not in card.tolerations
        for each in (taints.each() if taints else ())
    )


def _taken(pods: list[Shape]) -> dict[tuple[str, AcceleratorKind], int]:
    """GPUs of living pods by node and kind: of a pod's containers together, or of its greediest init container."""
    taken: dict[tuple[str, AcceleratorKind], int] = defaultdict(int)
    for pod in pods:
        spec = pod["spec"]
        node = spec.get("nodeName")
        if node is None:
            continue
        for resource, kind in RESOURCES.items():
            main = sum(_limit(each, resource) for each in spec["containers"].each())
            inits = spec.get("initContainers")
            first = max((_limit(each, resource) for each in (inits.each() if inits else ())), default=0)
            taken[node.text(), kind] += max(main, first)
    return taken


def _limit(container: Shape, resource: str) -> int:
    resources = container.get("resources")
    limits = resources.get("limits") if resources else None
    amount = limits.get(resource) if limits else None
    return amount.whole() if amount else 0


def _place(pool: Pool, card: RateCard) -> Place | None:
    country = card.regions.get(pool.region or "") or card.country
    return Place(country, "named_datacenter", "operator_statement", SOURCE) if country else None
