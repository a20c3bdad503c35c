"""What a project may do: its own limits where it has some, the settings' elsewhere (contract C12)."""

from __future__ import annotations

from decimal import Decimal

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from broker.settings import Settings
from broker.tables import Project
from jobs.types import Limits
from ledger.money import to_nano


class ProjectLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Each limit is named in the error that it causes. `max_file_bytes` is of a file sent in one request, `max_upload_bytes`
    of one sent in parts. `file_lifetime_s` and `results_lifetime_s` are how long inputs and results are kept when a request
    does not say; 0 keeps them until they are deleted. A batch that may cost more than `approve_above_nano` waits for a
    second person; None: none does."""

    max_lines: int
    max_file_bytes: int
    max_upload_bytes: int
    max_line_bytes: int
    max_output_tokens: int
    max_n: int
    file_lifetime_s: int
    results_lifetime_s: int
    approve_above_nano: int | None

    def of_validation(self) -> Limits:
        """A file was let in by the limit of its way in, one request or in parts; for its validation the larger one holds."""
        return Limits(
            max_lines=self.max_lines,
            max_file_bytes=max(self.max_file_bytes, self.max_upload_bytes),
            max_line_bytes=self.max_line_bytes,
            max_output_tokens=self.max_output_tokens,
            max_n=self.max_n,
        )


NAMES: tuple[str, ...] = tuple(name for name in ProjectLimits.__struct_fields__ if name != "approve_above_nano")
"""The limits that a project may have of its own, as they are called in requests, errors and `Project.limits`."""


async def project_limits(session: AsyncSession, settings: Settings, project: str) -> ProjectLimits:
    """The limits that hold for a project now; those of the settings for one that does not exist (yet)."""
    return limits_of(settings, await session.get(Project, project))


def limits_of(settings: Settings, project: Project | None) -> ProjectLimits:
    jobs, usual = settings.jobs, Limits()
    own = (project.limits if project else None) or {}
    approve = project.approve_above_nano if project else None
    if approve is None:
        approve = default_approval_nano(settings.control.approve_above_usd)
    return ProjectLimits(
        max_lines=own.get("max_lines", jobs.max_lines),
        max_file_bytes=own.get("max_file_bytes", jobs.max_file_bytes),
        max_upload_bytes=own.get("max_upload_bytes", jobs.max_upload_bytes),
        max_line_bytes=own.get("max_line_bytes", jobs.max_line_bytes),
        max_output_tokens=own.get("max_output_tokens", usual.max_output_tokens),
        max_n=own.get("max_n", usual.max_n),
        file_lifetime_s=own.get("file_lifetime_s", jobs.file_lifetime_s),
        results_lifetime_s=own.get("results_lifetime_s", jobs.results_lifetime_s),
        approve_above_nano=approve,
    )


def default_approval_nano(usd: Decimal | None) -> int | None:
    return None if usd is None else to_nano(usd)
