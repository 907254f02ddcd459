"""How many calls an endpoint gets at once: up to the number that was asked for, fewer where it suffers.

Plain arithmetic over times that are passed in, so that a test can run an hour in a moment; `pacing`
holds the queue.
"""

from __future__ import annotations

from statistics import median

# The opening: from a few calls to all of them. Sudden crowds overflow a server's accept queue, and a
# connection that is lost there is tried again by the kernel only after a second.
OPENING_CALLS = 32
OPENING_SECONDS = 0.3

# After trouble the limit falls to this share; to the smaller one where not a single call went well
# since it fell last.
SHRINK = 0.7
SHRINK_IN_STORM = 0.25
# Growth for each round of calls once the limit is near where trouble began.
GROWTH = 0.1

# Seconds of a reply that do not hang on its length, in output tokens: prefill and the way there.
FIXED_TOKENS = 16
# Latency a token beyond which a queue is suspected, and up to which the limit may grow, as multiples of
# the best that was seen.
TOO_SLOW = 2.5
CALM = 2.0
SMOOTHING = 0.2
FIRST_REPLIES = 16
STEADY = 0.25
# A smaller limit may cost this share of the throughput; beyond it the latency was the price of work done.
WORTH = 0.9


class Limit:
    """Additive increase, multiplicative decrease, with a slow start back to where trouble began.

    A call that was sent before the last decrease belongs to the same trouble and counts no more.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.value = float(most)
        self.latency = Latency()
        self._knee = float(most)
        self._opened: float | None = None
        self._opening = True
        self._changed = 0.0
        self._went_well = True

    def at(self, now: float) -> int:
        """The number of calls that may be in flight at `now` (seconds of a monotonic clock)."""
        if self._opening:
            if self._opened is None:
                self._opened = now
            share = (now - self._opened) / OPENING_SECONDS
            if share < 1.0:
                return min(self.most, OPENING_CALLS + int(self.most * share))
            self._opening = False
            self._changed = now
        return max(1, int(self.value))

    @property
    def opening(self) -> bool:
        """Whether the limit still rises by itself."""
        return self._opening

    def shrink(self, sent: float, now: float, in_flight: int, floor: int = 1) -> None:
        """Trouble with a call that was sent at `sent`, while `in_flight` were on their way."""
        if sent < self._changed:
            return
        self.latency.forget_trial()
        base = min(float(self.at(now)), max(in_flight, 1))
        if self._went_well:
            self._knee = max(1.0, base * SHRINK)
        factor = SHRINK if self._went_well else SHRINK_IN_STORM
        self._set(max(float(min(floor, self.most)), base * factor), now)
        self._went_well = False

    def succeeded(self, sent: float, now: float, in_flight: int, net: float | None, tokens: int) -> None:
        """A reply of `tokens` output tokens, `net` seconds without the client's own delay (None: the client
        was too busy to tell)."""
        self._went_well = True
        full = in_flight >= 0.8 * int(self.value)  # whole calls: 1 of 1.9 is all that there may be
        if self.latency.fresh:
            self.latency.first(now - sent, tokens)
        elif net is not None and sent >= self._changed:
            change = self.latency.add(sent - self._changed, net, tokens, in_flight)
            if change is not None:
                self._knee = min(self.most, max(1.0, change))
                self._set(self._knee, now)
                return
        if full and not self._opening and self.value < self.most and self.latency.calm:
            # Below the knee each success adds one, which doubles the limit in a round; beyond it a tenth.
            step = 1.0 if self.value < self._knee else max(1.0, GROWTH * self.value) / self.value
            self.value = min(float(self.most), self.value + step)

    def _set(self, value: float, now: float) -> None:
        self.value = min(float(self.most), max(1.0, value))
        self._opening = False
        self._changed = now
        self.latency.restart()


class Latency:
    """Finds the queue of a server that never says that it is busy.

    Latency a token that rises while calls wait in a queue buys nothing: fewer calls in flight bring as
    much through (Little's law: throughput is calls in flight over latency). Latency that rises because a
    server works on more calls at once is what it takes. The two are told apart by trying: where a
    smaller limit costs throughput it is taken back, and the latency is normal from then on.
    """

    def __init__(self) -> None:
        self.calm = True
        self._best: float | None = None
        self._trial: tuple[float, float, float] | None = None  # limit, throughput and latency before it
        self.restart()

    def restart(self) -> None:
        """The limit changed: calls that were sent before tell nothing of the new one."""
        self._samples: list[float] = []
        self._in_flight: list[int] = []
        self._skipping = True
        self._before: float | None = None  # latency of the window before

    @property
    def fresh(self) -> bool:
        """Whether nothing is known yet."""
        return self._best is None

    def forget_trial(self) -> None:
        """Something else changed the limit meanwhile."""
        self._trial = None

    def first(self, seconds: float, tokens: int) -> None:
        """One of the first replies, which tell what an idle server does. A client that is busy with its
        start makes them look slower than they are, which is on the safe side."""
        self._samples.append(seconds / (tokens + FIXED_TOKENS))
        if len(self._samples) == FIRST_REPLIES:
            self._best = sorted(self._samples)[FIRST_REPLIES // 5]
            self.restart()

    def add(self, since_change: float, seconds: float, tokens: int, in_flight: int) -> float | None:
        """A reply to a call that was sent `since_change` seconds after the limit changed last. Returns
        the new limit where it should change."""
        if self._skipping and since_change < seconds:
            return None  # it may have waited behind calls of the old limit
        self._skipping = False
        self._samples.append(seconds / (tokens + FIXED_TOKENS))
        self._in_flight.append(in_flight)
        if len(self._samples) < min(max(in_flight, 8), 64):
            return None
        slow = median(self._samples)
        calls = median(self._in_flight)
        low = sorted(self._samples)[len(self._samples) // 5]
        self._samples, self._in_flight = [], []
        return self._judge(slow, low, calls)

    def _judge(self, slow: float, low: float, calls: float) -> float | None:
        throughput = calls / slow if slow > 0 else float("inf")
        if self._trial is not None:
            limit, before, latency = self._trial
            self._trial = None
            if throughput < WORTH * before:
                self._best = max(self._best or 0.0, latency / CALM)
                self.calm = True
                return limit
        assert self._best is not None
        self._best -= SMOOTHING * max(0.0, self._best - low)  # chance makes single windows look good
        self.calm = slow <= CALM * self._best
        steady = self._before is not None and abs(slow - self._before) < STEADY * self._before
        self._before = slow
        if slow <= TOO_SLOW * self._best or calls <= 1 or not steady:
            return None  # a window that saw the change is no measure of what comes after it
        self._trial = (calls, throughput, slow)
        return calls * max(0.5, 1.5 * self._best / slow)
