"""The trials that every price source goes through: its official document, and a provider's bad days."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import stamina

from markets.errors import MarketsError, NoCredentials, NotAuthorized, RateLimited, ShapeDrift, Unavailable
from markets.offer import Offer, OfferKey, price_problem
from markets.offer_record import offer_from_record, record_from_offer
from tests.markets.sources import generated
from tests.markets.sources.cases import Case
from tests.markets.sources.document import Document
from tests.markets.sources.gathered import CASES
from tests.markets.sources.loopback import Fault, Loopback

every_source = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
# Google's own library follows redirects and limits no answer: nothing of ours would be on trial.
by_our_client = pytest.mark.parametrize(
    "case", [case for case in CASES if not case.by_library], ids=lambda case: case.name
)
judged = pytest.mark.parametrize("case", [case for case in CASES if case.document], ids=lambda case: case.name)
needs_pages = pytest.mark.parametrize("case", [case for case in CASES if case.looping], ids=lambda case: case.name)

# Their documents show no answer.
WITHOUT_MEMBERS = frozenset({"vast"})  # what is in an offer, its document shows by an example alone
WITHOUT_EXAMPLES = frozenset({"akash", "koyeb", "prime-intellect", "shadeform", "thunder"})


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """Retries as many as always, with no time between them."""
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


async def asked(case: Case, *faults: Fault, **options: object) -> tuple[list[Offer] | MarketsError, Loopback]:
    """What one poll gives, and the server that was asked."""
    async with Loopback(case.answers, faults=faults) as api:
        source = case.open(api.url, **options)  # type: ignore[arg-type]
        try:
            return await source.offers(), api
        except MarketsError as error:
            return error, api
        finally:
            await source.close()


@judged
async def test_requests_and_answers_are_as_the_official_document_says(case: Case) -> None:
    document = case.document() if case.document else None
    if document is None:
        pytest.skip("no official document here")
    async with Loopback(case.answers, document=document) as api:
        source = case.open(api.url)
        offers = await source.offers()
        await source.close()
    assert [each for each in api.violations if not each.startswith(tuple(case.undocumented))] == []
    assert len(offers) == case.offers


@judged
async def test_the_documents_own_examples_are_read(case: Case) -> None:
    """Whatever they make, they are of no shape that the adapter does not know."""
    document = case.document() if case.document else None
    if document is None:
        pytest.skip("no official document here")
    found = {asked: document.example(*asked.split(" ")[:2]) for asked in documented(case)}
    examples = {asked: example for asked, example in found.items() if example is not None}
    assert bool(examples) == (case.name not in WITHOUT_EXAMPLES), "answers made of its schemas stand for them, below"
    async with Loopback({**case.answers, **examples}) as api:
        source = case.open(api.url)
        offers = await source.offers()
        await source.close()
    assert all(offer.market == case.name for offer in offers)


# A minute of other people's generators: with `make conformance`, not with `make test`.
@pytest.mark.conformance
@judged
@pytest.mark.parametrize("strictly", [False, True], ids=["as the document says", "as services use it"])
async def test_any_answer_that_the_document_allows_makes_offers_that_hold_or_a_typed_error(
    case: Case, strictly: bool
) -> None:
    """Another program makes the answers, of each request of a poll in turn. Of those in which all named members are there, some
    make offers: else the trial proves nothing."""
    document = case.document() if case.document else None
    if document is None:
        pytest.skip("no official document here")
    # Twelve answers make offers nearly always; hypothesis also draws constants of whatever modules a process has imported.
    for count in (12, 100):
        made = [
            each for question in documented(case) for each in await offers_of(case, document, question, count, strictly)
        ]
        if made or not strictly or case.name in WITHOUT_MEMBERS:
            break
    assert made or not strictly or case.name in WITHOUT_MEMBERS


async def offers_of(case: Case, document: Document, question: str, count: int, strictly: bool) -> list[Offer]:
    """What the source makes of `count` generated answers to one request; each offer holds, each refusal is typed."""
    schema = document.answer_schema(*question.split(" ")[:2])
    made: list[Offer] = []
    for answer in generated.answers(generated.as_sent(schema) if strictly else schema, count):
        async with Loopback({**case.answers, question: answer}) as api:
            source = case.open(api.url)
            try:
                offers = await source.offers()
            except ShapeDrift as error:
                assert str(error).startswith(case.name)
                continue
            finally:
                await source.close()
        assert len({str(each.key) for each in offers}) == len(offers)
        for each in offers:
            holds(case, each)
        made += offers
    return made


def documented(case: Case) -> list[str]:
    return [question for question in case.answers if question not in case.undocumented]


def holds(case: Case, offer: Offer) -> None:
    """No price of 0 or less, none that is no number, no country without evidence, a key that is read as it was written."""
    assert offer.market == case.name and OfferKey.parse(str(offer.key)) == offer.key
    assert offer_from_record(record_from_offer(offer)) == offer
    assert offer.quarantined or price_problem(offer) is None
    assert offer.country is None or offer.evidence


@every_source
async def test_a_good_day(case: Case) -> None:
    """Offers with keys of this market, none twice, that survive being written down."""
    offers, _ = await asked(case)
    assert not isinstance(offers, MarketsError), offers
    assert len(offers) == case.offers == len({str(each.key) for each in offers})
    for each in offers:
        assert each.market == case.name
        assert offer_from_record(record_from_offer(each)) == each
        assert each.quarantined or (price_problem(each) is None and each.currency)
        assert each.country is None or each.evidence
        assert each.evidence or each.location_tier in ("anonymous", "claimed")


@every_source
async def test_a_replayed_poll_changes_no_key_and_no_price(case: Case) -> None:
    async with Loopback(case.answers) as api:
        source = case.open(api.url)
        first, second = await source.offers(), await source.offers()
        await source.close()
    assert {(str(o.key), o.price, o.raw_sha256) for o in first} == {(str(o.key), o.price, o.raw_sha256) for o in second}


@every_source
async def test_without_credentials_it_says_which_and_asks_nobody(case: Case) -> None:
    outcome, api = await asked(case, anonymous=True)
    if case.is_public:
        assert not isinstance(outcome, MarketsError)
        return
    assert isinstance(outcome, NoCredentials)
    assert all(name in str(outcome) for name in case.credentials)
    assert api.requests == []


BAD_DAYS: tuple[tuple[str, Fault, type[MarketsError]], ...] = (
    ("401", Fault(401), NotAuthorized),
    ("403", Fault(403), NotAuthorized),
    ("429 for good", Fault(429), RateLimited),
    ("429 with a long Retry-After", Fault(429, {"Retry-After": "120"}), RateLimited),
    ("429 with Retry-After as a date", Fault(429, {"Retry-After": "Fri, 01 Jan 2100 00:00:00 GMT"}), RateLimited),
    ("500 for good", Fault(500), Unavailable),
    ("404", Fault(404), Unavailable),
    ("the connection drops", Fault(drops=True), Unavailable),
    ("answers cut in the middle", Fault(cut=True), ShapeDrift),
    ("a page for people", Fault(body=b"<html>maintenance</html>"), ShapeDrift),
    ("an empty answer", Fault(body=b""), ShapeDrift),
    ("another shape: an empty object", Fault(body=b"{}"), ShapeDrift),
    ("another shape: an array of numbers", Fault(body=b"[1, 2]"), ShapeDrift),
    ("another shape: null", Fault(body=b"null"), ShapeDrift),
    ("not a number", Fault(body=b'{"data": NaN}'), ShapeDrift),
)  # fmt: skip


@every_source
@pytest.mark.parametrize(("day", "fault", "error"), BAD_DAYS, ids=[name for name, _, _ in BAD_DAYS])
async def test_a_bad_day_is_a_typed_error_without_secrets(
    case: Case, day: str, fault: Fault, error: type[MarketsError]
) -> None:
    outcome, _ = await asked(case, fault)
    assert isinstance(outcome, error), outcome
    assert str(outcome).startswith(case.name)
    assert not [name for name, value in case.credentials.items() if value in str(outcome)]


@by_our_client
async def test_a_redirect_elsewhere_is_not_followed(case: Case) -> None:
    outcome, _ = await asked(case, Fault(302, {"Location": "https://elsewhere.example/"}))
    assert isinstance(outcome, Unavailable), outcome


@every_source
async def test_whichever_request_fails_there_is_never_a_short_list(case: Case) -> None:
    """It fails, or has all offers: quotas that Google does not tell are unknown, and no reason to have no prices."""
    _, good = await asked(case)
    for number in range(len(good.requests)):
        outcome, _ = await asked(case, Fault(500, after=number))
        said = f"request {number} of {good.requests} failed"
        if case.besides.issuperset(request.partition("?")[0] for request in good.requests[number:]):
            assert isinstance(outcome, list) and len(outcome) == case.offers, said
        else:
            assert isinstance(outcome, Unavailable), said


@every_source
@pytest.mark.parametrize(
    "fault",
    [
        Fault(429, {"Retry-After": "1"}, times=1),
        Fault(429, times=1),
        Fault(503, times=1),
        Fault(502, times=1),
        Fault(drops=True, times=1),
    ],
    ids=["429 and Retry-After", "429", "503", "502", "dropped"],
)
async def test_what_passes_by_itself_is_asked_again(case: Case, fault: Fault) -> None:
    outcome, _ = await asked(case, fault)
    assert isinstance(outcome, list) and len(outcome) == case.offers


@every_source
async def test_a_long_retry_after_is_handed_on_at_once(case: Case) -> None:
    outcome, api = await asked(case, Fault(429, {"Retry-After": "120"}))
    assert isinstance(outcome, RateLimited) and outcome.retry_after_s == 120
    assert len(api.requests) == len(set(api.requests))


@every_source
async def test_a_hang_ends(case: Case) -> None:
    outcome, _ = await asked(case, Fault(hangs=True), timeout_s=0.05)
    assert isinstance(outcome, Unavailable)


@by_our_client
async def test_an_answer_without_end_is_not_kept(case: Case) -> None:
    outcome, _ = await asked(case, Fault(body=b"[" + b"1," * 100_000), max_bytes=10_000)
    assert isinstance(outcome, Unavailable) and "more than 10000 bytes" in str(outcome)


@needs_pages
async def test_pages_that_go_round_are_an_error(case: Case) -> None:
    async with Loopback(case.looping or {}) as api:
        source = case.open(api.url)
        with pytest.raises(ShapeDrift, match="page"):
            await source.offers()
        await source.close()
    assert len(api.requests) < 50


@needs_pages
async def test_a_page_that_comes_twice_makes_no_offer_twice(case: Case) -> None:
    async with Loopback(case.twice or {}) as api:
        source = case.open(api.url)
        offers = await source.offers()
        await source.close()
    assert len(offers) == case.offers == len({str(each.key) for each in offers})
