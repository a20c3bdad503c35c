"""From the program's floating-point values to a draft in integers that is exactly on time.

Raw values are never trusted: of 1,400 integers that HiGHS returned, 94 were not exactly integer. Counts are rounded, shares are
floored to millionths, every remainder goes where it provably fits, and the result is improved by steps that are checked one
by one.
"""

from __future__ import annotations

from solver.durations import PPM
from solver.problem import Draft, Problem, overspent
from solver.schedule import Site, Task, bill, is_on_time, room_ppm
from solver.solution import MARGIN_PPM, Solution


def restore(problem: Problem, solution: Solution) -> Draft:
    """The draft nearest to the program's solution. It may serve a few millionths less, never more than fits."""
    draft = Draft()
    for (index, kind), count in solution.counts.items():
        draft.counts_at(index, problem.sites[index])[kind] = max(0, round(count))
    for (index, work_id), share in solution.shares.items():
        floored = min(PPM, int(share * PPM + 1e-3))
        if floored > 0 and any(draft.counts_at(index, problem.sites[index])):
            draft.shares_at(index)[work_id] = floored
    for index, site in enumerate(problem.sites):
        _trim(site, draft.counts_at(index, site), draft.shares_at(index))
    for work in problem.works:
        left = solution.unserved.get(work.id, 0.0)
        target = PPM - (0 if left < 1e-6 else min(PPM, int(left * PPM)))
        _settle(problem, draft, work.id, work.lines, target)
    finish(problem, draft)
    return draft


def finish(problem: Problem, draft: Draft) -> None:
    """Drop instances that the work does not need, and keep warm rentals that cost nothing more."""
    for index, site in enumerate(problem.sites):
        counts, shares = draft.counts_at(index, site), draft.shares_at(index)
        if not any(shares.values()):
            draft.counts[index] = [0] * len(site.classes)
            continue
        _drop_spare(site, counts, shares)
        _keep_warm(problem, draft, index, site)


def _trim(site: Site, counts: list[int], shares: dict[str, int]) -> None:
    """Take from the latest tasks what would make anything late."""
    for task in reversed(site.tasks):
        room = room_ppm(site, counts, shares, task)
        if room < 0:
            shares[task.work.id] = max(0, shares.get(task.work.id, 0) + room)


def _settle(problem: Problem, draft: Draft, work_id: str, lines: int, target: int) -> None:
    """Bring the work's shares to `target` in sum: pieces below half a line go to its larger sites, then the remainder."""
    places = [
        (index, task) for index, site in enumerate(problem.sites) for task in site.tasks if task.work.id == work_id
    ]
    places.sort(key=lambda place: -draft.shares_at(place[0]).get(work_id, 0))
    dust = {
        index: share
        for index, _ in places[1:]
        if 0 < (share := draft.shares_at(index).get(work_id, 0)) < PPM // (2 * max(1, lines))
    }
    for index in dust:
        draft.shares_at(index).pop(work_id)
    for margin_ppm in (MARGIN_PPM, 0):  # the margin is there for the last millionths
        for index, task in places:
            _add(problem.sites[index], draft, index, task, target - draft.served(work_id), margin_ppm)
    for index, share in dust.items():
        shares = draft.shares_at(index)
        shares[work_id] = shares.get(work_id, 0) + max(0, min(share, target - draft.served(work_id)))


def _add(site: Site, draft: Draft, index: int, task: Task, wanted: int, margin_ppm: int) -> None:
    counts, shares = draft.counts_at(index, site), draft.shares_at(index)
    if wanted == 0 or not any(counts):
        return
    already = shares.get(task.work.id, 0)
    shares[task.work.id] = max(0, already + min(wanted, max(0, room_ppm(site, counts, shares, task, margin_ppm))))


def _drop_spare(site: Site, counts: list[int], shares: dict[str, int]) -> None:
    """One instance less, dearest start first, as long as all stays on time and the exact cost falls."""
    order = sorted(range(len(counts)), key=lambda kind: -site.classes[kind].cost(0))
    for kind in order:
        while counts[kind] > 0 and sum(counts) > 1:
            fewer = [count - (kind == other) for other, count in enumerate(counts)]
            if (
                not is_on_time(site, fewer, shares)
                or bill(site, fewer, shares).total >= bill(site, counts, shares).total
            ):
                break
            counts[kind] -= 1


def _keep_warm(problem: Problem, draft: Draft, index: int, site: Site) -> None:
    """A warm rental that shares the site's work costs nothing but rounding, and draining it only to save nothing is churn."""
    counts = draft.counts_at(index, site)
    dearest = max(each.price_nano_hour for each, count in zip(site.classes, counts, strict=True) if count)
    for kind, each in enumerate(site.classes):
        if each.is_new or each.ready_us > 0 or each.price_nano_hour > dearest or counts[kind] == len(each.rentals):
            continue
        before, counts[kind] = counts[kind], len(each.rentals)
        if overspent(problem, draft):
            counts[kind] = before
