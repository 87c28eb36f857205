"""What the numbers of several runs allow to say; the distributions are scipy's."""

import math
import statistics
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

LEVEL = 0.95  # of all intervals, for all comparisons of a table together
POWER = 0.8  # the chance with which so many seeds would separate a difference as large as the one seen
ROUNDING = 1e-12  # a deviation below it is what is left of equal numbers
MOST = 10_000  # seeds that are ever called for

Sample = Mapping[Any, float]
"""One number for each seed."""


class Interval(NamedTuple):
    """The values that the data do not exclude."""

    low: float
    high: float


class Spread(NamedTuple):
    mean: float
    deviation: float | None  # the sample standard deviation over seeds; None of a single seed


class Difference(NamedTuple):
    """How much the mean of one group is above that of another, over seeds."""

    mean: float
    interval: Interval | None  # corrected for the number of comparisons; None where a group has a single seed
    paired: bool  # by seed, for the seeds that both groups have; else Welch's
    needed: int | None  # seeds for each group that would separate this difference; None if it is separated, or 0

    @property
    def separated(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval is not None and not self.interval.low <= 0 <= self.interval.high


class _Test(NamedTuple):
    mean: float
    deviation: float  # divided by the root of n, the standard error of `mean` over n seeds
    paired: bool
    result: Any  # scipy's; None where all values are equal

    def interval(self, level: float) -> Interval:
        if self.result is None:
            return Interval(self.mean, self.mean)
        return Interval(*map(float, self.result.confidence_interval(level)))

    @property
    def p(self) -> float:
        return float(self.mean == 0) if self.result is None else float(self.result.pvalue)


def by_seed(pairs: Iterable[tuple[Any, float | None]]) -> dict[Any, float]:
    """Of (seed, value) pairs, one value for each seed: repetitions count once, the mean of those that differ."""
    found: dict[Any, dict[float, None]] = {}
    for seed, value in pairs:
        if value is not None:
            found.setdefault(seed, {})[value] = None
    return {seed: statistics.fmean(values) for seed, values in found.items()}


def spread(values: Sequence[float | None]) -> Spread | None:
    """The spread of the numbers among some values; None if there is none."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    return Spread(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None)


def binomial(share: float, images: int) -> Interval:
    """Wilson's interval of an accuracy that was measured on so many images."""
    from scipy import stats

    found = stats.binomtest(round(share * images), images).proportion_ci(LEVEL, method="wilson")
    return Interval(float(found.low), float(found.high))


def compare(reference: Sample, others: Sequence[Sample]) -> list[Difference]:
    """How each of `others` differs from `reference`: paired by seed where two seeds are common, else by Welch's test.

    Holm's step-down correction: the smallest of m p-values is compared at (1 - LEVEL) / m, the next at one less, until
    one is not separated; the rest stay at that level. An interval of the same level says the same as its test.
    """
    tests = [_test(other, reference) for other in others]
    levels: dict[int, float] = {}
    ranked = sorted((test.p, n) for n, test in enumerate(tests) if test is not None)
    left, stopped = len(ranked), False
    for p, n in ranked:
        levels[n] = 1 - (1 - LEVEL) / left
        stopped = stopped or p > 1 - levels[n]
        left -= not stopped
    found = []
    for n, test in enumerate(tests):
        if test is None:
            mean = statistics.fmean(others[n].values()) - statistics.fmean(reference.values())
            found.append(Difference(mean, None, False, None))
        else:
            made = Difference(test.mean, test.interval(levels[n]), test.paired, None)
            found.append(made if made.separated else made._replace(needed=_seeds(test, levels[n])))
    return found


def _test(one: Sample, other: Sample) -> _Test | None:
    """The t-test of a difference; None where there are too few seeds."""
    from scipy import stats

    common = [seed for seed in one if seed in other]
    if len(common) > 1:
        differences = [one[seed] - other[seed] for seed in common]
        mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
        return _Test(mean, deviation, True, stats.ttest_1samp(differences, 0) if deviation > ROUNDING else None)
    if min(len(one), len(other)) < 2:
        return None
    values = [list(sample.values()) for sample in (one, other)]
    mean = statistics.fmean(values[0]) - statistics.fmean(values[1])
    deviation = math.sqrt(sum(map(statistics.variance, values)))
    return _Test(mean, deviation, False, stats.ttest_ind(*values, equal_var=False) if deviation > ROUNDING else None)


def _seeds(test: _Test, level: float) -> int | None:
    """The smallest number of seeds of which a t-test at `level` has the POWER to see the difference; at most MOST."""
    from scipy import stats

    if not test.mean or test.result is None:
        return None

    def suffices(n: int) -> bool:
        freedom = (n - 1) if test.paired else 2 * (n - 1)
        critical = stats.t.ppf((1 + level) / 2, freedom)
        return bool(stats.nct.sf(critical, freedom, abs(test.mean) / test.deviation * math.sqrt(n)) >= POWER)

    return 2 + bisect_left(range(2, MOST), True, key=suffices)
