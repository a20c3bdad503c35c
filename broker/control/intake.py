"""Taking in a file: stream over it once with the project's limits, and ask whether its model is served here."""

from __future__ import annotations

from broker.services import Services
from jobs import lines
from jobs.types import Finding, Limits, Validation


def limits(services: Services) -> Limits:
    """The limits of validation, from the settings; every error that comes from one names it.

    The file was let in by the limit of its way in, one request or an upload in parts; here the larger one holds.
    """
    jobs = services.settings.jobs
    max_file_bytes = max(jobs.max_file_bytes, jobs.max_upload_bytes)
    return Limits(max_lines=jobs.max_lines, max_file_bytes=max_file_bytes, max_line_bytes=jobs.max_line_bytes)


async def validate_file(services: Services, object_key: str, endpoint: str | None) -> Validation:
    """Every finding and every shard of an input object. Raises ObjectMissing."""
    jobs = services.settings.jobs
    return await lines.validate(
        services.store.stream(object_key),
        limits=limits(services),
        endpoint=endpoint,
        shard_lines=jobs.shard_lines,
        shard_bytes=jobs.shard_bytes,
        default_output_tokens=jobs.default_output_tokens,
    )


def model_findings(services: Services, found: Validation) -> list[Finding]:
    """Whether the one model of the file is served here, at this endpoint. No findings for a file without a model."""
    if found.model is None:
        return []
    profile = services.models.get(found.model)
    if profile is None:
        known = ", ".join(sorted(services.models)) or "none"
        message = f"model {found.model!r} is not served here; known models: {known}"
        return [Finding(code="model_not_found", message=message, param="model")]
    if found.endpoint not in profile.endpoints:
        served = ", ".join(profile.endpoints)
        message = f"model {found.model!r} does not serve {found.endpoint}; it serves {served}"
        return [Finding(code="invalid_url", message=message, param="url")]
    return []
