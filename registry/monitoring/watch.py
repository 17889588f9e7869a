"""What is known of one deployment while it is live: its errors, latencies and drift, and the alarms that follow.

The monitor inside the server and the job over recorded requests feed the same class, one request after the other. Pure:
no clock, no store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from onward.registry.monitoring import decay, drift
from onward.registry.monitoring.decay import Call, ErrorTest, LatencyBaseline, LatencyFigures
from onward.registry.monitoring.drift import FeatureResult
from onward.registry.monitoring.windows import persistent

Kind = Literal["errors", "rejections", "latency", "shadow", "input_drift", "output_drift"]
Outcome = Literal["success", "failed", "invalid"]
FIRST_HOUR_S = 3600.0
_DRIFTS: tuple[tuple[str, Kind], ...] = (("input", "input_drift"), ("output", "output_drift"))
# Requests after which a deployment is the measure of the next one instead of the one before it.
LEAST_BEFORE = 100
# The deployment's windows that are remembered, for charts; and the calls of a window or of the first hour.
_MOST_WINDOWS, _MOST_CALLS = 500, 20_000


@dataclass(frozen=True)
class Alarm:
    """Something about a live version that a person should look at.

    Attributes:
        kind: what it is about.
        text: what was found, with the figures.
    """

    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True)
class Counts:
    """The requests of a deployment.

    Attributes:
        requests: those that the model should have answered.
        failures: those of them that failed.
        rejections: further requests, which were rejected as invalid.
    """

    requests: int = 0
    failures: int = 0
    rejections: int = 0


@dataclass(frozen=True)
class Period:
    """The figures of one window.

    Attributes:
        start: when it began, in seconds since 1970.
        end: when its last request arrived.
        requests: its requests.
        failures: those that failed.
        rejections: further requests, which were rejected as invalid.
        latency: its latencies in comparison with the baseline; None if there is none, or too few calls.
        p50_ms: the median latency; None without an answered request.
        p99_ms: the 99th percentile.
    """

    start: float
    end: float
    requests: int
    failures: int
    rejections: int
    latency: LatencyFigures | None
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True)
class Deployment:
    """A deployment of a version.

    Attributes:
        target: MODEL@ENVIRONMENT.
        version: the version.
        sha256: its digest.
        entry: the number of its entry in the environment's log.
    """

    target: str
    version: str
    sha256: str
    entry: int

    def __str__(self) -> str:
        return f"{self.target}, version {self.version}, entry {self.entry}"


@dataclass(frozen=True)
class Judgement:
    """What is known of a deployment.

    Attributes:
        deployment: the deployment.
        requests: its requests so far, without those that it rejected.
        failures: those that failed.
        rejections: the requests that it rejected as invalid.
        acceptable: the acceptable rate of errors.
        acceptable_from: what that rate is from, in words.
        latency_from: what its latencies are compared with, in words; "" if with nothing.
        periods: its windows, the oldest first.
        features: its drift, by feature and measure.
        alarms: the alarms.
        notes: what could not be judged, and why.
    """

    deployment: Deployment
    requests: int
    failures: int
    rejections: int
    acceptable: float
    acceptable_from: str
    latency_from: str = ""
    periods: tuple[Period, ...] = ()
    features: tuple[FeatureResult, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    notes: tuple[str, ...] = ()


class Watch:
    """Follows one deployment. `features` is its drift, and `baseline` what its latencies are compared with.

    Args:
        deployment: the deployment.
        before: what was counted of the version before; None if that is not known.
        window: the length of a window of errors and latencies, in seconds.
        first_hour: the time that counts as the version's first hour, in seconds.
    """

    def __init__(
        self,
        deployment: Deployment,
        before: Counts | None = None,
        window: float = 10.0,
        first_hour: float = FIRST_HOUR_S,
    ) -> None:
        self.deployment, self._before, self._window, self._first_hour = deployment, before, window, first_hour
        known = before is not None and before.requests > 0
        self._from = "the version before" if known else "no earlier version: the default"
        self._learning = not known
        self._test = ErrorTest(decay.UNKNOWN_RATE)
        # Without an earlier version, nothing says how many requests of these callers are invalid.
        self._rejecting: ErrorTest | None = None
        if before is not None and known:
            self._test = ErrorTest(decay.acceptable_rate(before.failures, before.requests))
            everything = before.requests + before.rejections
            self._rejecting = ErrorTest(decay.acceptable_rate(before.rejections, everything))
        self.counts = Counts()
        self._failing = False
        self.baseline: LatencyBaseline | None = None
        self.baseline_note = ""
        self._first_calls: list[Call] = []
        self.began: float | None = None
        self._rejected = 0
        self._period: list[tuple[float, bool, Call | None]] = []
        self.periods: deque[Period] = deque(maxlen=_MOST_WINDOWS)
        self.features: tuple[FeatureResult, ...] = ()

    def add(self, arrived: float, outcome: Outcome, call: Call | None = None) -> None:
        """Take note of a request of this version.

        Args:
            arrived: when it arrived, in seconds since 1970.
            outcome: how it ended. Invalid requests are no errors of the version, and are counted apart.
            call: the run of the model; None without an answer.
        """
        if self.began is None:
            self.began = arrived
        if arrived - self.began >= self._first_hour:
            self._end_first_hour()
        elif call is not None and len(self._first_calls) < _MOST_CALLS:
            self._first_calls.append(call)
        self._end_period(arrived)
        if self._rejecting is not None:
            self._rejecting.add(outcome == "invalid")
        if outcome == "invalid":
            self.counts = replace(self.counts, rejections=self.counts.rejections + 1)
            self._rejected += 1
            return
        failed = outcome == "failed"
        self.counts = replace(self.counts, requests=self.counts.requests + 1, failures=self.counts.failures + failed)
        self._failing = self._test.add(failed) or self._failing
        if len(self._period) < _MOST_CALLS:
            self._period.append((arrived, failed, call))

    @property
    def measure(self) -> Counts | None:
        """What the next deployment is compared with: this one, if it is sound and had enough requests."""
        bad = self._failing or self.counts.failures > self._test.acceptable * self.counts.requests
        bad = bad or (self._rejecting is not None and self._rejecting.alarm)
        few = self._before is not None and self.counts.requests < LEAST_BEFORE
        return self._before if bad or few else self.counts

    def flush(self, now: float) -> None:
        """End the present window if it is over.

        Args:
            now: the time, in seconds since 1970.
        """
        self._end_period(now)

    def judgement(self, extra: Sequence[Alarm] = (), notes: Sequence[str] = ()) -> Judgement:
        """What is known now.

        Args:
            extra: alarms from elsewhere.
            notes: what could not be judged, and why.
        """
        if self.baseline_note:
            notes = (*notes, self.baseline_note)
        if self.baseline is not None and self.periods and self.periods[-1].latency is None:
            notes = (*notes, f"latency: too few calls of the last window have input sizes of {self.baseline.source}")
        if self.baseline is None and self._learning_latency:
            notes = (*notes, "latency: the version's first hour is not over, so there is nothing to compare with")
        return Judgement(
            self.deployment,
            self.counts.requests,
            self.counts.failures,
            self.counts.rejections,
            self._test.acceptable,
            self._from,
            self.baseline.source if self.baseline else "",
            tuple(self.periods),
            self.features,
            (*self._alarms(), *extra),
            tuple(notes),
        )

    @property
    def _learning_latency(self) -> bool:
        newest = self._period[-1][0] if self._period else self.periods[-1].end if self.periods else None
        return newest is None or self.began is None or newest - self.began < self._first_hour

    def _alarms(self) -> tuple[Alarm, ...]:
        found: list[Alarm] = []
        if self._failing:
            failures, requests = self.counts.failures, self.counts.requests
            found.append(
                Alarm(
                    "errors",
                    f"{failures} of {requests} requests failed ({failures / requests:.1%}); at most "
                    f"{self._test.acceptable:.1%} is acceptable ({self._from})",
                )
            )
        if self._rejecting is not None and self._rejecting.alarm:
            rejected, total = self.counts.rejections, self.counts.requests + self.counts.rejections
            found.append(
                Alarm(
                    "rejections",
                    f"{rejected} of {total} requests were rejected as invalid ({rejected / total:.1%}); at most "
                    f"{self._rejecting.acceptable:.1%} is expected (the version before)",
                )
            )
        judged = [period.latency for period in self.periods if period.latency is not None]
        for name, exceeded, ratio, ms in (
            ("p50", [one.p50_exceeded for one in judged], "p50_ratio", "p50_ms"),
            ("p99", [one.p99_exceeded for one in judged], "p99_ratio", "p99_ms"),
        ):
            if persistent(exceeded) and self.baseline is not None:
                worst = [one for one in judged[-drift.LAST :] if getattr(one, f"{name}_exceeded")][-1]
                found.append(
                    Alarm(
                        "latency",
                        f"{name} is {getattr(worst, ms):.3g} ms, {getattr(worst, ratio):.3g} times as long as in "
                        f"{self.baseline.source}, in {sum(exceeded[-drift.LAST :])} of the last "
                        f"{len(exceeded[-drift.LAST :])} windows",
                    )
                )
        for kind, alarm in _DRIFTS:
            features = [one for one in self.features if one.alarm and one.kind == kind]
            if features:
                shown = ", ".join(f"{one.feature} ({one.measure} {one.effect:.3g})" for one in features[:3])
                more = f" and {len(features) - 3} more" if len(features) > 3 else ""
                found.append(Alarm(alarm, f"differences from the reference: {shown}{more}"))
        return tuple(found)

    def _end_first_hour(self) -> None:
        """Take the first hour as the measure of what follows, where there is no better one.

        For latency, a benchmark is better only if it measured the input sizes of most calls.
        """
        if self._learning:
            self._learning = False
            self._test = ErrorTest(decay.acceptable_rate(self.counts.failures, self.counts.requests))
            self._from = "the version's first hour"
        calls, self._first_calls = self._first_calls, []
        if not calls or (self.baseline is not None and 2 * decay.known_calls(self.baseline, calls) >= len(calls)):
            return
        made = decay.latency_baseline("the version's first hour", calls)
        if made is not None:
            self.baseline = made
        elif self.baseline is None:
            self.baseline_note = (
                f"latency: the version's first hour had {len(calls)} calls, and a comparison needs "
                f"{decay.LEAST_BASELINE}"
            )

    def _end_period(self, now: float) -> None:
        """End the window if its time is over and it has enough requests."""
        rows = self._period
        if len(rows) < decay.LEAST_CALLS or now - rows[0][0] < self._window:
            return
        calls = [call for _, _, call in rows if call is not None]
        ms = [call.ms for call in calls]
        self.periods.append(
            Period(
                rows[0][0],
                rows[-1][0],
                len(rows),
                sum(failed for _, failed, _ in rows),
                self._rejected,
                decay.judge_latency(self.baseline, calls) if self.baseline else None,
                float(np.median(ms)) if ms else None,
                float(np.quantile(ms, 0.99)) if ms else None,
            )
        )
        self._period, self._rejected = [], 0
        self._end_alarms()

    def _end_alarms(self) -> None:
        """End an alarm of errors or rejections if the last windows are sound: its cause has passed.

        Otherwise a fault of minutes would cause a rollback as soon as a cool-down ends.
        """
        recent = list(self.periods)[-drift.LAST :]
        requests = sum(one.requests for one in recent)
        if len(recent) < drift.LAST:
            return
        if self._failing and sum(one.failures for one in recent) <= self._test.acceptable * requests:
            self._failing, self._test = False, ErrorTest(self._test.acceptable)
        test, rejected = self._rejecting, sum(one.rejections for one in recent)
        if test is not None and test.alarm and rejected <= test.acceptable * (requests + rejected):
            self._rejecting = ErrorTest(test.acceptable)


def drift_window(
    rows: Sequence[tuple[float, Mapping[str, Any], Mapping[str, Any]]],
) -> drift.Window:
    """Join the tensors of some requests to a window. A tensor that not every request has is left out.

    Args:
        rows: time, inputs and outputs of each request, in the order of time.
    """
    return drift.Window(
        _joined([inputs for _, inputs, _ in rows]),
        _joined([outputs for _, _, outputs in rows if outputs]),
        rows[0][0],
        rows[-1][0],
    )


def _joined(requests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = set(requests[0]).intersection(*requests[1:]) if requests else set()
    found: dict[str, Any] = {}
    for name in sorted(names):
        arrays = [np.atleast_1d(one[name]) for one in requests]
        same = len({(array.shape[1:], array.dtype) for array in arrays}) == 1
        found[name] = np.concatenate(arrays) if same else arrays
    return found
