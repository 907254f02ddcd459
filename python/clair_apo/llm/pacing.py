"""When the next call of an endpoint may go out: one queue for everything that speaks of it.

Calls in flight stay within the limit, which adapts; a server's word to wait holds all of them together;
budgets a minute are kept. A call that waits to be tried again holds no place.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from clair_apo.llm.chat import Halted
from clair_apo.llm.limit import Limit
from clair_apo.llm.rates import Rate, ServerBudget, told_by

FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
# A storm in which nothing goes well for longer than a call's own tries would wait, times this, is no storm
# but the weather. A call that it has hit this many times as often as it has tries is hit for its own sake.
PATIENCE = 3.0
STORM_TRIES = 5
LONGEST_PROBE_WAIT = 2.0
# A share of refusals among the last outcomes that makes a storm, if several calls were refused.
RECENT = 50
STORM_SHARE = 0.2

LONGEST_HINT = 60.0
OPENING_TICK = 0.01
LAG_TICK = 0.02
# What of a call's time may be the client's own: it waits for the loop when it is sent and when it is read.
LAG_TURNS = 3.0
LAG_SHARE = 0.25


@dataclass(slots=True, eq=False)
class Turn:
    """A place among the calls in flight."""

    tokens: int
    sent: float = 0.0
    requests_then: int = 0
    tokens_then: int = 0
    over: bool = False


@dataclass(slots=True, eq=False)
class Patience:
    """How often one call was refused, and how many of its tries that has cost it."""

    retries: int
    tries: int = 0
    spent: int = 0


class Pacer:
    """The queue of one endpoint. To be used on one event loop."""

    def __init__(
        self,
        concurrency: int,
        rpm: float | None = None,
        tpm: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = Limit(concurrency)
        self.in_flight = 0
        self._clock = clock
        self._requests = Rate(rpm) if rpm else None
        self._tokens = Rate(tpm) if tpm else None
        self._told_requests = ServerBudget()
        self._told_tokens = ServerBudget()
        self._requests_sent = 0
        self._tokens_sent = 0
        self._waiting: deque[tuple[asyncio.Future[None], Turn]] = deque()
        self._wake: asyncio.TimerHandle | None = None
        self._pause_until = 0.0
        self._granted = 0.0  # when the last call went out
        self._pauses = 0  # since a call went well
        self._outcomes: deque[Patience | None] = deque(maxlen=RECENT)
        self._went_well = False  # since the last refusal
        self._nothing_since: float | None = None  # the first refusal since a call went well
        self._halted = asyncio.Event()
        self._lag = _Lag()

    # -- a call's turn ------------------------------------------------------------------------------

    async def turn(self, tokens: int = 0) -> Turn:
        """Waits for a place. `tokens` is what the call will count against a budget of tokens, as far as
        is known. Raises Halted once the run is told to stop."""
        if self._halted.is_set():
            raise Halted
        self._lag.watch()
        turn = Turn(tokens)
        if not self._waiting and self._wait(turn, self._clock()) == 0.0:
            self._grant(turn)
            return turn
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, turn))
        self._pump()
        try:
            await future
        except BaseException:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._release(turn)  # the place came with the cancellation
            raise
        return turn

    def succeeded(self, turn: Turn, tokens_in: int | None, tokens_out: int | None, chars: int) -> None:
        """A reply came. Token counts are the server's; without them the length of the reply serves."""
        now = self._clock()
        out = tokens_out if tokens_out is not None else chars // 4
        seconds = now - turn.sent
        lag = LAG_TURNS * self._lag.recent()
        net = seconds - lag if lag < LAG_SHARE * seconds else None
        self._pauses = 0
        self._outcomes.append(None)
        self._nothing_since = None
        self._went_well = True
        self.limit.succeeded(turn.sent, now, self.in_flight, net, out)
        if self._tokens is not None and tokens_in is not None:
            self._tokens.correct(tokens_in + out - turn.tokens)
        self._release(turn)

    def refused(self, turn: Turn, patience: Patience, after: float | None) -> float | None:
        """The server wants fewer calls (429). All of them wait, `after` seconds where it says so; but a
        call that is refused again while others go well waits alone.

        Returns the seconds that the call itself should wait besides, None where it should give up. A
        refusal among calls that go well spends one of its tries. In a storm, which hits whoever comes, none
        is spent, until nothing has gone well for long.
        """
        now = self._clock()
        patience.tries += 1
        self._outcomes.append(patience)
        stormy = self._stormy()
        if self._nothing_since is None:
            self._nothing_since = now
        others_go_well, self._went_well = not stormy and self._went_well, False
        # A call that was hit for its own sake stays so, also where others like it are all that is left.
        own_sake = patience.spent > 1
        alone = own_sake or (others_go_well and (patience.tries > 1 or after is None))
        if not alone or patience.tries == 1:
            self.limit.shrink(turn.sent, now, self.in_flight)
        if not alone and turn.sent >= self._pause_until:
            self._pauses += 1
        own = _growing(max(self._pauses - 1, 0))
        waits = _own_waits(patience.retries)
        lasting = stormy and now - self._nothing_since > PATIENCE * waits
        if lasting:  # it is past waiting for; those who come now only see whether it is over
            own = min(own, LONGEST_PROBE_WAIT, max(FIRST_WAIT, waits / 4))
        if after is None:
            after = own_wait(patience.tries) if alone else own * random.uniform(0.75, 1.0)
        elif patience.tries > patience.retries:
            after = max(after, own)  # obeyed often enough: it may know as little as we do
        if not alone:
            self.pause(after)
        self._release(turn)
        if not stormy or own_sake or patience.retries == 0:
            patience.spent += 1
            give_up = patience.spent > patience.retries
        else:
            give_up = lasting or patience.tries > STORM_TRIES * (patience.retries + 1)
        if give_up:
            return None
        return after if alone else 0.0

    def failed(self, turn: Turn, after: float | None = None) -> None:
        """The server failed, or answered too late: it may be doing too much. `after`: what it asks to
        wait; all calls do."""
        self.limit.shrink(turn.sent, self._clock(), self.in_flight, floor=max(1, self.limit.most // 16))
        if after is not None:
            self.pause(after)
        self._release(turn)

    def dropped(self, turn: Turn) -> None:
        """The call is over, and tells nothing of how busy the server is."""
        self._release(turn)

    def pause(self, seconds: float) -> None:
        """No call goes out for so long."""
        self._pause_until = max(self._pause_until, self._clock() + seconds)

    def read(self, turn: Turn, headers: Mapping[str, str]) -> None:
        """Takes in what a reply's headers tell of the server's budgets."""
        now = self._clock()
        if (told := told_by(headers, "requests")) is not None:
            self._told_requests.told(told, turn.requests_then, self._requests_sent, now)
        if (told := told_by(headers, "tokens")) is not None:
            self._told_tokens.told(told, turn.tokens_then, self._tokens_sent, now)

    # -- the run ------------------------------------------------------------------------------------

    @property
    def paused_for(self) -> float:
        """Seconds for which the server's word, or its headers, still hold all calls."""
        now = self._clock()
        hinted = self._hinted(self._waiting[0][1], now) if self._waiting else 0.0
        return max(0.0, self._pause_until - now, hinted)

    @property
    def allowed(self) -> int:
        """The calls that may be in flight now."""
        return self.limit.at(self._clock())

    async def sleep(self, seconds: float) -> None:
        """Waits, without a place. Raises Halted once the run is told to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self._halted.wait()
        except TimeoutError:
            return
        raise Halted

    def halt(self) -> None:
        """No further calls; whoever waits is told so. Calls in flight come home."""
        self._halted.set()
        for future, _ in self._waiting:
            if not future.done():
                future.set_exception(Halted())
        self._waiting.clear()
        self.close()

    def close(self) -> None:
        """Stops the timers."""
        self._lag.stop()
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None

    # -- the queue ----------------------------------------------------------------------------------

    def _wait(self, turn: Turn, now: float) -> float:
        """Seconds until the call may go out; infinity where only another one's end can tell."""
        if self.in_flight >= self.limit.at(now):
            return OPENING_TICK if self.limit.opening else float("inf")
        waits = [self._pause_until - now, 0.0]
        if self._requests is not None:
            waits.append(self._requests.wait(now))
        if self._tokens is not None:
            waits.append(self._tokens.wait(now))
        return max(*waits, self._hinted(turn, now))

    def _hinted(self, turn: Turn, now: float) -> float:
        """Seconds that the server's headers advise to wait. They are hints: after a minute without a call
        one goes out all the same, and its answer tells."""
        wait = max(self._told_requests.wait(1, now), self._told_tokens.wait(turn.tokens, now))
        return min(wait, max(0.0, self._granted + LONGEST_HINT - now))

    def _grant(self, turn: Turn) -> None:
        now = self._clock()
        self.in_flight += 1
        self._granted = now
        self._requests_sent += 1
        self._tokens_sent += turn.tokens
        self._told_requests.take(1, now)
        self._told_tokens.take(turn.tokens, now)
        turn.sent = now
        turn.requests_then, turn.tokens_then = self._requests_sent, self._tokens_sent
        if self._requests is not None:
            self._requests.take(1, now)
        if self._tokens is not None:
            self._tokens.take(turn.tokens, now)

    def _release(self, turn: Turn) -> None:
        if not turn.over:
            turn.over = True
            self.in_flight -= 1
            self._pump()

    def _pump(self) -> None:
        """Lets go whom it is the turn of, and sets the timer for the next."""
        while self._waiting:
            future, turn = self._waiting[0]
            if future.done():  # cancelled while it waited
                self._waiting.popleft()
                continue
            wait = self._wait(turn, self._clock())
            if wait > 0:
                self._set_timer(wait)
                return
            self._waiting.popleft()
            self._grant(turn)
            future.set_result(None)

    def _set_timer(self, wait: float) -> None:
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if wait < float("inf"):
            self._wake = asyncio.get_running_loop().call_later(wait, self._pump)

    def _stormy(self) -> bool:
        refused = [item for item in self._outcomes if item is not None]
        return (
            len(refused) >= STORM_SHARE * len(self._outcomes) and len({id(item) for item in refused}) >= 2
        )


def _growing(n: int) -> float:
    """Seconds of the wait after `n` others: twice as long each time, up to the longest."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(n, 10))


def _own_waits(retries: int) -> float:
    """Seconds that a call waits in all when it is tried again so often on its own."""
    return sum(_growing(n) for n in range(retries))


def own_wait(tries: int) -> float:
    """Seconds before the next try of a call that failed `tries` times: neither together nor at once."""
    return _growing(tries - 1) * random.uniform(0.75, 1.0)


class _Lag:
    """How late the event loop runs: what a busy client adds to every call."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._recent: deque[float] = deque(maxlen=10)

    def watch(self) -> None:
        if self._timer is None:
            self._next(asyncio.get_running_loop())

    def recent(self) -> float:
        return max(self._recent, default=0.0)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + LAG_TICK
        self._timer = loop.call_at(self._due, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._recent.append(max(0.0, loop.time() - self._due))
        self._next(loop)
