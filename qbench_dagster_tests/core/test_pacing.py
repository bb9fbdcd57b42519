"""Pacing keeps nearly all of the rate an account allows and provokes hardly a 429, with any service's habits."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench_dagster.core.pacing import Pacer, duration, reading, retry_after


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360.0),
        ("1.2s", 1.2),
        ("20ms", 0.02),
        ("1h2m", 3720.0),
        ("0s", 0.0),
        ("7m12s", 432.0),
        ("1d2h3m4.5s", 93_784.5),
        ("59.5", 59.5),
        (" 1s ", 1.0),
        ("250us", 0.000_25),
    ],
)
def test_durations_are_read_as_services_write_them(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1s ago", "1 s", "nan", "inf", "s", "m5", "1e3", "٣s", "5m-3s"])
def test_anything_else_is_no_duration(text: str) -> None:
    assert duration(text) is None


@given(st.integers(0, 10**9))
def test_a_duration_written_in_parts_is_read_back(milliseconds: int) -> None:
    minutes, rest = divmod(milliseconds, 60_000)
    assert duration(f"{minutes}m{rest / 1000}s") == pytest.approx(milliseconds / 1000)


@given(st.text(max_size=20))
def test_no_text_upsets_the_reading_of_headers(text: str) -> None:
    duration(text)
    headers = {f"x-ratelimit-{what}-tokens": text for what in ("limit", "remaining", "reset")}
    seen = reading(headers | {"retry-after": text, "retry-after-ms": text, "date": text}, "tokens")
    assert seen is None or seen.limit > 0
    assert (retry_after({"retry-after": text, "retry-after-ms": text, "date": text}, 0.0) or 0.0) >= 0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "20"}, 20.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:02:00 GMT"}, 20.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:02:00 GMT", "date": "Thu, 01 Jan 1970 00:01:55 GMT"}, 5.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, 0.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_comes_as_seconds_or_as_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, wall_clock=100.0) == seconds


def test_a_reading_needs_a_limit_and_what_remains_of_it() -> None:
    whole = {"x-ratelimit-limit-tokens": "1000", "x-ratelimit-remaining-tokens": "10"}
    found = reading(whole, "tokens")
    assert found is not None
    assert (found.limit, found.remaining, found.reset_s) == (1000, 10, None)
    assert reading(whole, "requests") is None
    assert reading({"x-ratelimit-limit-tokens": "1000"}, "tokens") is None
    assert reading(whole | {"x-ratelimit-limit-tokens": "0"}, "tokens") is None


# ---- a simulated service


@dataclass
class Service:
    """Two buckets with a minute's limits, that hold `window` seconds of them."""

    requests_per_minute: float = 1e9
    tokens_per_minute: float = 1e9
    window: float = 60.0
    reset_digits: int = 3
    now: float = 0.0
    levels: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.limits = {"requests": self.requests_per_minute, "tokens": self.tokens_per_minute}
        self.sizes = {kind: limit * self.window / 60 for kind, limit in self.limits.items()}
        self.levels = dict(self.sizes)

    def refill(self, now: float) -> None:
        for kind, limit in self.limits.items():
            self.levels[kind] = min(self.sizes[kind], self.levels[kind] + limit / 60 * (now - self.now))
        self.now = now

    def admit(self, now: float, tokens: float) -> float:
        """0 and taken off, or the seconds to wait."""
        self.refill(now)
        costs = {"requests": 1.0, "tokens": tokens}
        wait = max((cost - self.levels[kind]) / self.limits[kind] * 60 for kind, cost in costs.items())
        if wait > 1e-9:
            return wait
        for kind, cost in costs.items():
            self.levels[kind] -= cost
        return 0.0

    def headers(self, now: float) -> dict[str, str]:
        self.refill(now)
        found = {}
        for kind, limit in self.limits.items():
            reset = (self.sizes[kind] - self.levels[kind]) / limit * 60
            found[f"x-ratelimit-limit-{kind}"] = str(int(limit))
            found[f"x-ratelimit-remaining-{kind}"] = str(max(0, int(self.levels[kind])))
            found[f"x-ratelimit-reset-{kind}"] = f"{reset:.{self.reset_digits}f}s"
        return found


@dataclass
class Outcome:
    served: list[tuple[float, int, int]] = field(default_factory=list)
    """(sent at, tokens, number of arrival)"""
    refused: int = 0

    def tokens(self) -> int:
        return sum(tokens for _, tokens, _ in self.served)


def simulate(
    service: Service,
    sizes: Iterator[int],
    *,
    seconds: float,
    workers: int = 8,
    latency: float = 0.05,
    jitter: float = 0.0,
    admitted_at_end: bool = False,
    read_at_end: bool = False,
    truly: float = 1.0,
    foreign: float = 0.0,
) -> Outcome:
    """Workers that always have something to send, for `seconds` of simulated time.

    `truly`: tokens the service counts for each of ours; `foreign`: tokens a second another client of the account uses.
    """
    pacer, outcome, chance = Pacer(), Outcome(), random.Random(7)
    events: list[tuple[float, int, Callable[[float], None]]] = []
    order = itertools.count()
    waiting: deque = deque()
    arrivals = itertools.count()

    def at(moment: float, what: Callable[[float], None]) -> None:
        heapq.heappush(events, (moment, next(order), what))

    def join(tokens: int, number: int) -> None:
        waiting.append((pacer.arrive(tokens), number))

    def send(turn, number: int, now: float) -> None:
        pacer.send(turn, now)
        trip = latency * (0.2 + chance.random() * jitter)
        refusal: list[float] = []
        headers: list[dict[str, str]] = []

        def admitted(moment: float) -> None:
            refusal.append(service.admit(moment, turn.tokens * truly))
            headers.append(service.headers(moment))

        def back(moment: float) -> None:
            if refusal[0]:
                outcome.refused += 1
                pacer.answer(turn, moment, headers[0], served=False, refused=True)
                pacer.close_until(moment + refusal[0])
                join(turn.tokens, number)
            else:
                outcome.served.append((turn.sent_at, turn.tokens, number))
                pacer.answer(turn, moment, service.headers(moment) if read_at_end else headers[0], served=True)
                join(next(sizes), next(arrivals))

        end = now + max(latency, trip)
        at(end if admitted_at_end else now + trip, admitted)
        at(end, back)

    def another(moment: float) -> None:
        service.admit(moment, foreign / 10)
        at(moment + 0.1, another)

    if foreign:
        at(0.0, another)
    for _ in range(workers):
        join(next(sizes), next(arrivals))
    now = 0.0
    while now < seconds:
        while waiting and pacer.delay(waiting[0][0], now) == 0:
            send(*waiting.popleft(), now)
        delay = pacer.delay(waiting[0][0], now) if waiting else None
        if delay is not None and (not events or now + delay < events[0][0]):
            now += delay
            continue
        now, _, what = heapq.heappop(events)
        what(now)
    return outcome


HABITS = {
    "checked on arrival": {},
    "checked and read at the end": {"admitted_at_end": True, "read_at_end": True},
    "checked on arrival, read at the end": {"read_at_end": True, "latency": 1.5},
    "overtaking on the way": {"jitter": 1.0, "latency": 0.2},
    "slow": {"latency": 4.0, "workers": 16},
    "counts fewer tokens than we do": {"truly": 0.75},
    "counts slightly more tokens than we do": {"truly": 1.03},
}


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("window", [60.0, 4.0])
@pytest.mark.parametrize(
    ("limits", "size"),
    [({"tokens_per_minute": 1_000_000}, 20_000), ({"requests_per_minute": 3000}, 30)],
    ids=["by tokens", "by requests"],
)
def test_nearly_all_of_the_allowed_rate_is_used_with_hardly_a_refusal(
    habit: str, window: float, limits: dict[str, float], size: int
) -> None:
    service = Service(**limits, window=window)
    chance = random.Random(3)
    sizes = iter(lambda: chance.randint(size // 2, size), None)
    options = {"workers": 8, "latency": 0.05} | HABITS[habit]
    seconds = 240.0
    outcome = simulate(service, sizes, seconds=seconds, **options)
    if "tokens_per_minute" in limits:
        allowed = limits["tokens_per_minute"] * (seconds + window) / 60 / options.get("truly", 1.0)
        used = float(outcome.tokens())
    else:
        allowed = limits["requests_per_minute"] * (seconds + window) / 60
        used = float(len(outcome.served))
    # what so many workers can do at all with this latency
    allowed = min(allowed, used / len(outcome.served) * options["workers"] * seconds / options["latency"])
    said = f"{used / allowed:.3f} of the allowed rate, {outcome.refused} of {len(outcome.served)} refused"
    assert used >= 0.9 * allowed, said
    assert outcome.refused <= 5 + 0.01 * len(outcome.served), said


def test_another_client_of_the_same_account_is_noticed() -> None:
    service = Service(tokens_per_minute=600_000)
    outcome = simulate(service, itertools.repeat(10_000), seconds=300, foreign=5_000)
    allowed = 600_000 * (300 + 60) / 60 - 5_000 * 300
    assert outcome.tokens() >= 0.9 * allowed
    assert outcome.refused <= 0.1 * len(outcome.served), "more than one each, if nothing is learnt from them"


def test_a_big_request_is_not_starved_by_small_ones() -> None:
    service = Service(tokens_per_minute=60_000)
    sizes = (50_000 if number == 200 else 500 for number in itertools.count())
    outcome = simulate(service, sizes, seconds=200)
    numbers = [number for *_, number in outcome.served]
    assert 200 in numbers
    place = numbers.index(200)
    assert set(range(190)) <= set(numbers[: place + 1]), "those before it"
    assert all(number < 215 for number in numbers[:place]), "hardly one that came after it went before it"
    assert outcome.refused == 0


def test_a_limit_of_requests_a_day_is_not_taken_for_one_of_a_minute() -> None:
    service = Service(requests_per_minute=200)
    service.limits["requests"] = 200 / 1440  # a minute, of 200 a day
    service.sizes["requests"] = service.levels["requests"] = 20
    real_headers = service.headers

    def headers(now: float) -> dict[str, str]:
        found = real_headers(now)
        used = 20 - service.levels["requests"]
        return found | {
            "x-ratelimit-limit-requests": "20",
            "x-ratelimit-remaining-requests": str(int(20 - used)),
            "x-ratelimit-reset-requests": f"{int(used * 432)}s",
        }

    service.headers = headers  # type: ignore[method-assign]
    outcome = simulate(service, itertools.repeat(100), seconds=4 * 3600)
    assert outcome.refused <= 2
    assert len(outcome.served) >= 20 + 30


@pytest.mark.parametrize("digits", [0, 1, 3])
def test_rounded_times_until_full_do_not_slow_it_down(digits: int) -> None:
    service = Service(tokens_per_minute=1_000_000, reset_digits=digits)
    outcome = simulate(service, itertools.repeat(10_000), seconds=120)
    assert outcome.tokens() >= 0.9 * 1_000_000 * (120 + 60) / 60
    assert outcome.refused <= 0.01 * len(outcome.served)


# ---- rules, one at a time

LIMITS = {
    "x-ratelimit-limit-tokens": "60000",
    "x-ratelimit-remaining-tokens": "59000",
    "x-ratelimit-reset-tokens": "1s",
}


def learnt(headers: dict[str, str] = LIMITS, *, served: bool = True) -> Pacer:
    """A pacer after its first request of 1,000 tokens, at second 1."""
    pacer = Pacer()
    turn = pacer.arrive(1000)
    pacer.send(turn, 0.0)
    pacer.answer(turn, 1.0, headers, served=served)
    return pacer


def test_one_request_is_in_flight_until_the_limits_are_known() -> None:
    pacer = Pacer()
    first, second = pacer.arrive(10), pacer.arrive(10)
    assert pacer.delay(first, 0.0) == 0
    pacer.send(first, 0.0)
    assert pacer.delay(second, 100.0) is None
    pacer.answer(first, 100.0, {}, served=False)
    assert pacer.delay(second, 100.0) == 0, "an error told nothing, but the way is free"
    pacer.send(second, 100.0)
    third = pacer.arrive(10)
    assert pacer.delay(third, 100.0) is None
    pacer.answer(second, 101.0, LIMITS, served=True)
    fourth = pacer.arrive(10)
    assert pacer.delay(third, 101.0) == 0
    pacer.send(third, 101.0)
    assert pacer.delay(fourth, 101.0) == 0


def test_a_service_that_names_no_limits_is_not_paced() -> None:
    pacer = learnt({})
    for _ in range(100):
        turn = pacer.arrive(10**9)
        assert pacer.delay(turn, 1.0) == 0
        pacer.send(turn, 1.0)
    assert pacer.ceiling is None


def test_nobody_goes_before_the_first_in_the_queue() -> None:
    pacer = learnt()
    big, small = pacer.arrive(59_500), pacer.arrive(1)
    assert pacer.delay(big, 1.0) == pytest.approx(0.5, abs=0.01)
    assert pacer.delay(small, 1.0) is None
    pacer.depart(big)
    assert pacer.delay(small, 1.0) == 0


def test_nothing_goes_while_the_way_is_closed() -> None:
    pacer = learnt()
    pacer.close_until(8.0)
    pacer.close_until(3.0)
    turn = pacer.arrive(1)
    assert pacer.delay(turn, 1.0) == 7.0
    assert pacer.delay(turn, 8.0) == 0.0


def test_the_ceiling_is_what_the_bucket_can_hold() -> None:
    pacer = learnt()
    assert pacer.ceiling == 60_000
    pacer.refused_as_too_large(50_000, 20_000)
    assert pacer.ceiling == 20_000
    pacer.refused_as_too_large(20_000, 0)
    assert pacer.ceiling == 10_000, "no number was named: half of what was refused"
    assert learnt({}).ceiling is None


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 0.5), st.floats(0.01, 3)), min_size=1, max_size=60),
    st.booleans(),
)
def test_never_more_is_sent_than_the_bucket_can_have_held(
    requests: list[tuple[int, float, float]], read_at_end: bool
) -> None:
    """Whatever the order of answers: all that was sent by a moment was there by that moment."""
    service = Service(tokens_per_minute=60_000, window=10)
    pacer = learnt(service.headers(0.0) | {"x-ratelimit-remaining-tokens": "9000", "x-ratelimit-reset-tokens": "1s"})
    service.levels["tokens"] = 9000
    service.refill(1.0)
    now = 1.0
    flying: list[tuple[float, int, object, dict[str, str]]] = []
    for number, (tokens, pause, trip) in enumerate(requests):
        now += pause
        turn = pacer.arrive(tokens)
        while True:
            delay = pacer.delay(turn, now)
            assert delay is not None
            due = min(flying, default=None, key=lambda one: one[0])
            if due is not None and due[0] <= now + delay:
                flying.remove(due)
                now = max(now, due[0])
                pacer.answer(due[2], now, service.headers(now) if read_at_end else due[3], served=True)  # type: ignore[arg-type]
            elif delay == 0:
                break
            else:
                now += delay
        pacer.send(turn, now)
        assert service.admit(now, tokens) <= 0.001, "refused (a millisecond: the service rounds)"
        flying.append((now + trip, number, turn, service.headers(now)))


def headers_of(remaining: int, reset: str, limit: int = 60_000) -> dict[str, str]:
    return {
        "x-ratelimit-limit-tokens": str(limit),
        "x-ratelimit-remaining-tokens": str(remaining),
        "x-ratelimit-reset-tokens": reset,
    }


def test_a_bucket_that_holds_less_than_a_minutes_worth_does_not_fill_beyond_that() -> None:
    pacer = learnt(headers_of(9000, "1s"))
    first, second = pacer.arrive(10_000), pacer.arrive(10_000)
    assert pacer.delay(first, 100.0) == 0
    pacer.send(first, 100.0)
    assert pacer.delay(second, 100.0) == pytest.approx(10.0)


def test_what_others_used_is_taken_off_together_with_what_was_sent_since() -> None:
    pacer = learnt()
    first, second, third = pacer.arrive(10_000), pacer.arrive(10_000), pacer.arrive(10_000)
    pacer.send(first, 1.0)
    pacer.send(second, 1.0)
    pacer.answer(first, 1.0, headers_of(15_000, "45s"), served=True)
    assert pacer.delay(third, 1.0) == pytest.approx(5.0), "15,000 were left before the second was sent"


def test_a_time_until_full_that_was_rounded_up_does_not_undo_what_is_known() -> None:
    pacer = learnt(headers_of(30_000, "30s"))
    turn = pacer.arrive(100)
    pacer.send(turn, 31.0)
    pacer.answer(turn, 31.0, headers_of(59_900, "1s"), served=True)
    big = pacer.arrive(60_000)
    assert pacer.delay(big, 31.0) == pytest.approx(0.1), "100 tokens at 1,000 a second"
