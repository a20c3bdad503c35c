"""How many requests and tokens a server that is not ours lets us ask in a minute, kept by waiting. Pure: the time is given.

Both are kept as allowances that fill steadily and hold a tenth of a minute: providers count in shorter windows, and a
burst at its start is refused (429) though the minute's sum is within the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_WINDOW_S = 6.0
_CHARACTERS_PER_TOKEN = 4


@dataclass(slots=True)
class Pace:
    """None: no such limit. A request that was sent is counted by its length and the mean of the answers before; when its answer
    says what it took, the difference is settled."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    _requests: float = field(default=0.0, init=False)
    _tokens: float = field(default=0.0, init=False)
    _at: float | None = field(default=None, init=False)
    _over: float = field(default=0.0, init=False)
    _answers: int = field(default=0, init=False)

    def wait_s(self, now: float) -> float:
        """Seconds until another request may go; 0 or less: now."""
        self._fill(now)
        waits = [0.0]
        if self.requests_per_minute is not None:
            waits.append((1.0 - self._requests) * 60 / self.requests_per_minute)
        if self.tokens_per_minute is not None:
            # one request may be more than the allowance holds: it goes when nothing is owed
            waits.append(-self._tokens * 60 / self.tokens_per_minute)
        return max(waits)

    def sent(self, now: float, characters: int) -> None:
        """A request of so many characters went out."""
        self._fill(now)
        self._requests -= 1
        self._tokens -= self._expected(characters)

    def answered(self, tokens: int, characters: int) -> None:
        """Its answer came, and took so many tokens, prompt included."""
        self._tokens += self._expected(characters) - tokens
        self._answers += 1
        self._over += (tokens - characters / _CHARACTERS_PER_TOKEN - self._over) / self._answers

    def _expected(self, characters: int) -> float:
        return max(1.0, characters / _CHARACTERS_PER_TOKEN + self._over)

    def _fill(self, now: float) -> None:
        passed = _WINDOW_S if self._at is None else now - self._at
        self._at = now
        if self.requests_per_minute is not None:
            most = max(1.0, self.requests_per_minute * _WINDOW_S / 60)
            self._requests = min(most, self._requests + passed * self.requests_per_minute / 60)
        if self.tokens_per_minute is not None:
            most = self.tokens_per_minute * _WINDOW_S / 60
            self._tokens = min(most, self._tokens + passed * self.tokens_per_minute / 60)
