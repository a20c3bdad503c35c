"""Providers' own SDKs, and dstack's gpuhunt, at a loopback server: `python their_clients.py NAME URL` prints what one has read.

Runs in an environment of its own (`.ci/clients`), nothing of ours is there. Each prints a JSON array of rows.
"""

import json
import sys


def verda(url):
    from verda import VerdaClient  # noqa: PLC0415 - one client a run

    client = VerdaClient("client_1", "secret_verda", base_url=f"{url}/v1")
    places = {each["code"]: each["country_code"] for each in client.locations.get()}
    for is_spot in (False, True):
        free = {
            each["location_code"]: each["availabilities"]
            for each in client.instances.get_availabilities(is_spot=is_spot)
        }
        for kind in client.instance_types.get():
            for place, country in places.items():
                yield {
                    "sku": kind.instance_type,
                    "region": place,
                    "spot": is_spot,
                    "country": country,
                    "price": kind.spot_price_per_hour if is_spot else kind.price_per_hour,
                    "count": kind.gpu["number_of_gpus"],
                    "gib": kind.gpu_memory["size_in_gigabytes"],
                    "free": kind.instance_type in free.get(place, []),
                }


def scaleway(url):
    from scaleway import Client  # noqa: PLC0415 - one client a run
    from scaleway.instance.v1 import InstanceV1API  # noqa: PLC0415 - one client a run

    client = Client(access_key="SCW" + "A" * 17, secret_key="11111111-1111-1111-1111-111111111111", api_url=url)
    api = InstanceV1API(client)
    for zone, pages in (("fr-par-1", 2), ("pl-waw-2", 1)):
        types, free = {}, {}
        for page in range(1, pages + 1):
            types |= api.list_servers_types(zone=zone, page=page, per_page=100).servers
            free |= api.get_server_types_availability(zone=zone, page=page, per_page=100).servers
        for sku, kind in types.items():
            yield {
                "sku": sku,
                "zone": zone,
                "price": kind.hourly_price,
                "count": kind.gpu,
                "gpu": kind.gpu_info.gpu_name if kind.gpu_info else None,
                "bytes": kind.gpu_info.gpu_memory if kind.gpu_info else None,
                "ended": kind.end_of_service,
                "free": str(free[sku].availability) if sku in free else None,
            }


def openrouter(url):
    from openrouter import OpenRouter  # noqa: PLC0415 - one client a run

    with OpenRouter(api_key="none", server_url=f"{url}/api/v1") as client:
        found = client.models.list()
    for model in getattr(found, "result", found).data:
        yield {
            "sku": model.id,
            "prompt": model.pricing.prompt,
            "completion": model.pricing.completion,
            "cached": model.pricing.input_cache_read,
            "context": model.context_length,
            "writes": [str(getattr(each, "value", each)) for each in model.architecture.output_modalities],
        }


def oci(url):
    from gpuhunt.providers import oci as theirs  # noqa: PLC0415 - one client a run

    theirs.COST_ESTIMATOR_URL_TEMPLATE = url + "/a/ocom/docs/cloudestimator2/data/{resource}"
    estimator = theirs.CostEstimator()
    products = estimator.get_products()
    for shape in estimator.get_shapes().items:
        if shape.hidden or shape.sub_type.value != "gpu":
            continue
        try:
            resources = theirs.shape_to_resources(shape, products)
        except theirs.CostEstimatorDataError:
            price = None
        else:
            price = resources.total_price()
        yield {"sku": shape.name, "price": price, "count": shape.gpu_qty, "spot": shape.allow_preemptible}


def azure(url):
    from gpuhunt.providers import azure as theirs  # noqa: PLC0415 - one client a run

    theirs.prices_url = f"{url}/api/retail/prices"
    theirs.retail_prices_page_size = 1  # the loopback server counts pages
    reader = theirs.AzureProvider.__new__(theirs.AzureProvider)
    reader.cache_dir = None
    for page in reader.get_pages(["eastus", "westeurope"], threads=1):
        for row in page:
            name, gib = theirs.get_gpu_name_memory(row["armSkuName"])
            yield {
                "sku": row["armSkuName"],
                "region": row["armRegionName"],
                "spot": "Spot" in row["meterName"],
                "price": row["retailPrice"],
                "gpu": name,
                "gib": gib,
            }


def kubernetes(url):
    from kubernetes import client as theirs  # noqa: PLC0415 - one client a run

    access = theirs.Configuration(host=url, api_key={"BearerToken": "secret_cluster_token"})
    access.api_key_prefix = {"BearerToken": "Bearer"}
    api = theirs.CoreV1Api(theirs.ApiClient(access))

    def every(listing, **asked):
        token = None
        while token != "":
            page = listing(limit=500, **asked, **({"_continue": token} if token else {}))
            yield from page.items
            token = page.metadata.var_continue or ""

    taken = {}
    for pod in every(api.list_pod_for_all_namespaces, field_selector="status.phase!=Succeeded,status.phase!=Failed"):
        wanted = [
            [int(((each.resources and each.resources.limits) or {}).get("nvidia.com/gpu", 0)) for each in containers]
            for containers in (pod.spec.containers, pod.spec.init_containers or [])
        ]
        name = pod.spec.node_name
        taken[name] = taken.get(name, 0) + max(sum(wanted[0]), *wanted[1], 0)
    for node in every(api.list_node):
        yield {
            "node": node.metadata.name,
            "sku": node.metadata.labels.get("node.kubernetes.io/instance-type"),
            "region": node.metadata.labels["topology.kubernetes.io/region"],
            "gpus": int(node.status.allocatable.get("nvidia.com/gpu", 0)),
            "mib": int(node.metadata.labels.get("nvidia.com/gpu.memory", 0)),
            "taken": taken.get(node.metadata.name, 0),
            "ready": {each.type: each.status for each in node.status.conditions}.get("Ready") == "True",
            "cordoned": bool(node.spec.unschedulable),
        }


if __name__ == "__main__":
    json.dump(list(globals()[sys.argv[1]](sys.argv[2])), sys.stdout)
