"""A cluster: eight whole H100s of which four are taken, a cordoned node, a shared L4, a node without GPUs; two pages."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from aiohttp import web

from markets.sources.kubernetes import KubernetesSource, RateCard
from tests.markets.sources.cases import Case

CARD = RateCard(
    usd_per_gpu_hour={"h100-sxm": Decimal("2.39"), "l4": Decimal("0.50")},
    counts=(1, 8),
    regions={"US-EAST-04": "US"},
    operator="CoreWeave",
    home="US",
)


def node(
    name: str, gpus: int, labels: dict[str, str], *, cordoned: bool = False, taint: str | None = None
) -> dict[str, Any]:
    taints = [{"key": taint, "effect": "NoSchedule"}] if taint else []
    amounts = {"cpu": "128", "memory": "2113464508Ki"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    return {
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/region": "US-EAST-04", **labels}},
        "spec": {"unschedulable": True, "taints": taints} if cordoned else {"taints": taints},
        "status": {"allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]},
    }  # fmt: skip


H100 = {
    "node.kubernetes.io/instance-type": "gd-8xh100ib-i128",
    "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
    "nvidia.com/gpu.memory": "81559",
}
L4 = {
    "node.kubernetes.io/instance-type": "l4",
    "nvidia.com/gpu.product": "NVIDIA-L4-SHARED",
    "nvidia.com/gpu.memory": "23034",
    "nvidia.com/gpu.replicas": "4",
}
NODES = [
    node("a", 8, H100, taint="nvidia.com/gpu"),
    node("b", 8, H100, cordoned=True),
    node("c", 4, L4),
    node("d", 0, {"node.kubernetes.io/instance-type": "cpu"}),
]


def pod(name: str, where: str | None, gpus: int, first: int = 0) -> dict[str, Any]:
    def container(amount: int) -> dict[str, Any]:
        return {"name": "c", "image": "x", "resources": {"limits": {"nvidia.com/gpu": str(amount)}} if amount else {}}

    spec: dict[str, Any] = {"containers": [container(gpus), container(0)]}
    spec |= {"initContainers": [container(first)]} if first else {}
    spec |= {"nodeName": where} if where else {}
    return {"metadata": {"name": name, "namespace": "default"}, "spec": spec, "status": {"phase": "Running"}}


PODS = [pod("trains", "a", 3, first=4), pod("waits", None, 8), pod("web", "d", 0)]


def in_twos(rows: list[dict[str, Any]], kind: str) -> Any:
    def answer(request: web.Request, _: bytes) -> Any:
        at = int(request.query.get("continue", "0"))
        more = {"continue": str(at + 2)} if at + 2 < len(rows) else {}
        return {
            "kind": kind,
            "apiVersion": "v1",
            "metadata": {"resourceVersion": "1", **more},
            "items": rows[at : at + 2],
        }

    return answer


def endless(_: web.Request, __: bytes) -> Any:
    return {"kind": "NodeList", "apiVersion": "v1", "metadata": {"continue": "again"}, "items": NODES[:1]}


PODS_ANSWER = in_twos(PODS, "PodList")
CASE = Case(
    name="kubernetes",
    make=lambda keys, reach: KubernetesSource(keys, reach, card=CARD),
    answers={"GET /api/v1/nodes": in_twos(NODES, "NodeList"), "GET /api/v1/pods": PODS_ANSWER},
    offers=3,
    credentials={"token": "secret_cluster_token"},
    is_public=True,
    looping={"GET /api/v1/nodes": endless, "GET /api/v1/pods": PODS_ANSWER},
    twice={
        "GET /api/v1/nodes": in_twos([NODES[0], NODES[1], NODES[1], NODES[2]], "NodeList"),
        "GET /api/v1/pods": PODS_ANSWER,
    },
)
