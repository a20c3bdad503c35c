"""From the settings to a machine at EC2: the market is opened, polled, planned with and rented from as in production."""

from __future__ import annotations

import json
from base64 import b64decode
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.loaders import Loader
from pydantic import SecretStr

from broker.control.place import Placer
from broker.control.plan import Planner
from broker.control.poll import Poller
from broker.house_accounts import HouseAccounts
from broker.market_set import UnknownMarket, open_markets
from broker.market_settings import AwsSettings
from broker.settings import Settings
from markets.tables import RentalRow
from tests.markets.aws_rig import PARAMETER, REGION, Aws, client, moto
from workers.profile import ModelProfile

IMAGE = f"vllm/vllm-openai@sha256:{'0' * 64}"


@pytest.mark.aws
async def test_a_batch_makes_the_broker_rent_a_machine_at_ec2_that_can_start_its_worker(
    town: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with moto(tmp_path_factory.mktemp("moto")) as url:
        async with AsyncExitStack() as stack:
            aws = await stack.enter_async_context(Aws(url, Loader(include_default_search_paths=True)))
            settings = Settings(
                data=tmp_path,
                cache=tmp_path / "cache",
                markets=("aws",),
                aws=AwsSettings(
                    regions=(REGION,),
                    instance_types=("g5.xlarge",),
                    access_key_id="AKIDTEST",
                    secret_access_key=SecretStr("secret"),
                    image=PARAMETER,
                    endpoint_url=aws.url,
                    price_list_url=aws.url + "/price-list/{region}/index.csv",
                ),
            )
            model = ModelProfile(
                id="tiny",
                engine="vllm",
                weights="org/tiny",
                image=IMAGE,
                launches=("vm",),
                tokens_per_s={"a10g": (1000, 10)},
            )
            services = replace(
                town.services,
                settings=settings,
                markets=await open_markets(settings, HouseAccounts(town.database), owner="test", stack=stack),
                models={"tiny": model},
                public_url="https://broker.example",
            )
            await Poller(services).step()
            await town.batch(lines=10)
            await Planner(services).step()
            (intent,) = await town.intents()
            assert intent.offer_key.endswith("/g5.xlarge/a10g/1/spot"), "spot is the cheaper one"
            await Placer(services, None).step()
            row = await town.row(RentalRow, intent.id)
            assert (row.state, row.market, row.market_facts["lifecycle"]) == ("running", "aws", "spot")
            found = client(aws.moto).describe_instances(Filters=[{"Name": "tag:broker:tag", "Values": [row.id]}])
            assert len(found["Reservations"]) == 1
            form = next(form for action, form in aws.asked if action == "RunInstances")
            files = {
                each["path"]: each["content"] for each in yaml.safe_load(b64decode(form["UserData"]))["write_files"]
            }
            config = json.loads(files[f"/var/lib/broker/{row.id}/files/agent.json"])
            assert (config["broker_url"], config["metadata"]) == ("https://broker.example", "aws")
            assert IMAGE in files["/var/lib/broker/worker.sh"]


async def test_a_market_without_a_region_is_refused_at_the_start(town: Any, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        settings, house = Settings(data=tmp_path, markets=("aws",)), HouseAccounts(town.database)
        with pytest.raises(UnknownMarket, match=r"set aws\.regions"):
            await open_markets(settings, house, owner="test", stack=stack)
