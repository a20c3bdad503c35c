"""Who calls, with what right, and of which project: the checks before any handler runs. Deny by default."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import structlog
from aiohttp import web

from broker import authority, used_proofs, worker_sessions
from broker.api.problems import Problem, bad_request, forbidden, not_found, unauthorized, unavailable
from broker.api.registry import Call, Route
from broker.keys import DEFAULT_PROJECT, Principal, authenticate
from broker.oidc import BadToken, Issuer, IssuerSilent, is_token, principal_of
from broker.services import Services
from broker.tables import Project
from broker.together import Together
from broker.worker_binding import Shown, require_bound, shown_by
from broker.worker_sessions import Refused
from jobs.clock import db_now

log = structlog.get_logger()

PROJECT_HEADER = "openai-project"
MOST_TOGETHER = 200


@dataclass(frozen=True, slots=True)
class _Presented:
    """A session token, and what came with it."""

    token: str = field(repr=False)
    shown: Shown


async def identify(
    declared: Route, services: Services, sessions: WorkerSessions, request: web.Request, request_id: str
) -> Call:
    """The call with its caller. Raises Problem 401 (who are you), 403 (not with your roles), 404 (no such project)."""
    if declared.access == "key":
        return await _by_key(declared, services, request, request_id)
    if declared.access == "worker":
        rental = await sessions.rental(request)
        return Call(services, request, request_id, None, "", rental)
    return Call(services, request, request_id, None, "")


def bearer(request: web.Request) -> str:
    """The token of `Authorization: Bearer …`. Raises 401 when the header is missing or of another kind."""
    kind, _, text = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "bearer" or not text.strip():
        raise unauthorized("missing_api_key", "No API key was sent; send it as `Authorization: Bearer brk_…`.")
    return text.strip()


async def _by_key(declared: Route, services: Services, request: web.Request, request_id: str) -> Call:
    text = bearer(request)
    named = request.headers.get(PROJECT_HEADER)
    # before the transaction: the issuer may have to be asked
    person = await _by_token(services.issuer, text, named) if services.issuer and is_token(text) else None
    async with services.database.transaction() as session:
        principal = person or await authenticate(session, text, await db_now(session))
        if principal is None:
            raise unauthorized("invalid_api_key", "The API key is not valid: mistyped, unknown, expired or revoked.")
        if not principal.may(declared.roles):
            wanted = ", ".join(sorted(declared.roles))
            had = ", ".join(sorted(principal.roles))
            raise forbidden(
                "role_required",
                f"{declared.method} {declared.path} takes one of the roles {wanted}; this key has {had}.",
            )
        if declared.of_house and principal.project is not None:
            message = f"{declared.method} {declared.path} is for keys of all projects (`broker keys create … --all-projects`)."
            raise not_found("of_all_projects", message)
        project = scope(principal, named)
        if principal.project is None and await session.get(Project, project) is None:
            raise no_such_project(project)
    return Call(services, request, request_id, principal, project)


async def _by_token(issuer: Issuer, text: str, named: str | None) -> Principal:
    """The person that a token speaks of. Raises 401 for a token that opens nothing, 403 for a person whom nothing is granted,
    404 for a project that is none of the person's, 503 when the issuer cannot be asked."""
    try:
        person = await issuer.person(text)
    except BadToken as bad:
        log.info("oidc.refused", reason=str(bad))
        raise unauthorized(
            "invalid_token", f"The token is not valid here: {bad}. Get another with `broker login`."
        ) from bad
    except IssuerSilent as silent:
        log.error("oidc.issuer_silent", reason=str(silent))
        raise unavailable(
            "issuer_unavailable", "The token cannot be checked now: its issuer does not answer."
        ) from silent
    found = principal_of(person, issuer.settings, named)
    if isinstance(found, Principal):
        return found
    if not found.projects:
        message = f"{person.name} is known, and none of its groups is granted anything here; see oidc.grants."
        raise forbidden("nothing_granted", message)
    if named:
        raise no_such_project(named)
    message = f"{person.name} may work in {', '.join(found.projects)}; name one of them in the header {PROJECT_HEADER}."
    raise bad_request("project_required", message)


def scope(principal: Principal, named: str | None) -> str:
    """The one project that a call may see: the key's own, or, for a key of all projects, the one that it names."""
    if principal.project is None:
        return named or DEFAULT_PROJECT
    if named and named != principal.project:
        raise no_such_project(named)
    return principal.project


def wished_project(call: Call, named: str | None) -> str:
    """The project that a request's body names (`x_broker.project`), as `scope` has it for the header.

    Raises 403 for a key of another project, 400 when the header names yet another.
    """
    if named is None or named == call.project:
        return call.project
    if call.caller.project is not None:
        message = f"x_broker.project {named!r}: this key is of project {call.caller.project!r} and may name no other."
        raise forbidden("project_forbidden", message)
    header = call.request.headers.get(PROJECT_HEADER)
    if header:
        message = f"x_broker.project {named!r} and the header {PROJECT_HEADER} {header!r} differ; name one project"
        raise bad_request("invalid_value", message, "x_broker.project")
    return named


def no_such_project(name: str) -> Problem:
    return not_found(
        "project_not_found", f"No project {name!r} for this key; leave `{PROJECT_HEADER}` away to use the key's own."
    )


class WorkerSessions:
    """Whom session tokens speak for. Requests that come at the same time are looked up together, each after it came: what was
    revoked before a request refuses it."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._identified: Together[_Presented, str] = Together(self._identify, most=MOST_TOGETHER)

    async def rental(self, request: web.Request) -> str:
        """The rental that a worker's session token speaks for. A token that is cut off is 401: the worker stops."""
        return await self._identified(_Presented(bearer(request), await shown_by(request)))

    async def _identify(self, presented: Sequence[_Presented]) -> list[str | Exception]:
        async with self._services.database.transaction() as session:
            now_us = await db_now(session)
            claimed = [worker_sessions.read(self._services.secret, each.token, now_us) for each in presented]
            known = await worker_sessions.standings(session, {claims.rental for claims in claimed if claims})
            certificates = {
                each.shown.certificate
                for each, claims in zip(presented, claimed, strict=True)
                if claims and claims.bound == "certificate" and each.shown.certificate
            }
            speaking = await authority.speaking(session, certificates, now_us)
            found = [
                _speaker(each, claims, known.get(claims.rental) if claims else None, speaking, now_us)
                for each, claims in zip(presented, claimed, strict=True)
            ]
            # only what speaks for somebody is written down: strangers cannot fill the table
            shown = [
                each.shown.proof if claims and claims.bound == "proof" and isinstance(speaker, str) else None
                for each, claims, speaker in zip(presented, claimed, found, strict=True)
            ]
            unused = set(await used_proofs.use(session, {proof for proof in shown if proof}, now_us))
        answers: list[str | Exception] = []
        for speaker, proof in zip(found, shown, strict=True):
            is_used = proof is not None and proof not in unused
            unused.discard(proof or "")  # of two in one round, the second is the repetition
            answers.append(_used() if is_used else speaker)
        return answers


def _used() -> Problem:
    message = "This proof was used before; make the call again with a new one."
    return Problem(425, "proof_used", message, headers={"Retry-After": "0"})


def _speaker(
    presented: _Presented,
    claims: worker_sessions.Session | None,
    standing: worker_sessions.Standing | None,
    speaking: Collection[tuple[str, str]],
    now_us: int,
) -> str | Exception:
    try:
        worker_sessions.require_live(claims, standing)
        assert claims is not None and standing is not None
        certificate = presented.shown.certificate
        speaks = certificate in speaking and certificate is not None and certificate[1] == claims.rental
        require_bound(claims, standing.pubkey, presented.shown, speaks, now_us)
        return claims.rental
    except Refused as refused:
        return Problem(refused.status, refused.code, str(refused))
