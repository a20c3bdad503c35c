"""Taking in a file: stream over it once with the project's limits, and ask whether its model is served here."""

from __future__ import annotations

from broker.api.shapes import BatchWishes
from broker.project_limits import project_limits
from broker.services import Services
from broker.variants import ModelWishes, Variants, variants
from jobs import lines
from jobs.tables import Batch
from jobs.types import Validation


async def validate_batch(services: Services, batch: Batch) -> Validation:
    """A batch's input, read as the batch asked. Raises ObjectMissing."""
    wishes = batch.wishes or {}
    return await validate_file(
        services,
        batch.project,
        batch.input_key,
        batch.endpoint,
        skip_invalid=bool(wishes.get("skip_invalid")),
        reuse=bool(wishes.get("reuse")),
    )


async def validate_file(
    services: Services,
    project: str,
    object_key: str,
    endpoint: str | None,
    *,
    skip_invalid: bool = False,
    reuse: bool = False,
) -> Validation:
    """Every finding and every shard of an input object, by the project's limits. With `skip_invalid` bad lines are no
    findings; with `reuse` it is said which lines may be answered without an engine. Raises ObjectMissing."""
    jobs = services.settings.jobs
    async with services.database.transaction() as session:
        limits = await project_limits(session, services.settings, project)
    return await lines.validate(
        services.store.stream(object_key),
        limits=limits.of_validation(),
        endpoint=endpoint,
        shard_lines=jobs.shard_lines,
        shard_bytes=jobs.shard_bytes,
        default_output_tokens=jobs.default_output_tokens,
        media_hosts=frozenset(jobs.media_hosts),
        skip_invalid=skip_invalid,
        reuse=reuse,
    )


def served_by(services: Services, found: Validation, wishes: BatchWishes | None) -> Variants:
    """The profiles that may serve the one model of the file. Neither profiles nor findings for a file without a model."""
    if found.model is None:
        return Variants((), ())
    asked = wishes or BatchWishes()
    wanted = ModelWishes(models=asked.models or (), precision=asked.precision, engine_profile=asked.engine_profile)
    return variants(services.models, model=found.model, endpoint=found.endpoint, wishes=wanted)
