"""A comparison says what its numbers allow: against scipy, and against experiments whose truth is known."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vggexp.report import statistics

SCORES = st.lists(st.floats(0, 1).map(lambda value: round(value, 4)), min_size=2, max_size=6)


def sample(values: list[float], first: int = 0) -> dict[int, float]:
    return dict(enumerate(values, start=first))


@settings(max_examples=60, deadline=None)
@given(SCORES, SCORES)
def test_an_unpaired_difference_is_welchs(one: list[float], other: list[float]) -> None:
    (found,) = statistics.compare(sample(other), [sample(one, first=100)])
    assert not found.paired
    assert found.interval is not None
    if len(set(one)) == len(set(other)) == 1:
        assert found.interval == (found.mean, found.mean)
        return
    expected = stats.ttest_ind(one, other, equal_var=False)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval()), abs=1e-9)
    assert found.separated == (expected.pvalue < 0.05)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6))
def test_a_difference_over_common_seeds_is_paired(pairs: list[tuple[float, float]]) -> None:
    one, other = ([round(pair[n], 4) for pair in pairs] for n in (0, 1))
    (found,) = statistics.compare(sample(other), [{**sample(one), 99: 0.5}])  # a seed that only one of them has
    assert found.paired
    assert found.interval is not None
    if len({round(a - b, 9) for a, b in zip(one, other, strict=True)}) > 1:
        expected = stats.ttest_rel(one, other)
        assert found.interval == pytest.approx(tuple(expected.confidence_interval()), abs=1e-9)
        assert found.separated == (expected.pvalue < 0.05)
    else:
        assert found.separated == (found.mean != 0)


@pytest.mark.slow
@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_holds_the_truth_in_95_of_100_experiments(paired: bool) -> None:
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        seeds = generator.normal(0.9, 0.01, 5)  # what a seed brings to all networks
        one = seeds + 0.003 + generator.normal(0, 0.004, 5)
        other = seeds if paired else generator.normal(0.9, 0.02, 7)
        (found,) = statistics.compare(sample(list(other)), [sample(list(one), first=0 if paired else 100)])
        assert found.interval is not None
        held += found.interval.low <= 0.003 <= found.interval.high
    assert 0.93 <= held / 1000 <= 0.97


@pytest.mark.slow
def test_many_comparisons_are_corrected_and_intervals_agree_with_their_tests() -> None:
    """With five networks that are all the same, one in twenty tables names a difference, not one in six."""
    generator = np.random.default_rng(2)
    tables = 150
    wrong = 0
    for _ in range(tables):
        samples = [sample(list(generator.normal(0.9, 0.01, 6)), first=100 * n) for n in range(5)]
        found = statistics.compare(samples[0], samples[1:])
        wrong += any(each.separated for each in found)
        p = [stats.ttest_ind(list(s.values()), list(samples[0].values()), equal_var=False).pvalue for s in samples[1:]]
        rejected = set()
        for rank, n in enumerate(np.argsort(p)):
            if p[n] > 0.05 / (4 - rank):
                break
            rejected.add(int(n))
        assert {n for n, each in enumerate(found) if each.separated} == rejected
    assert wrong / tables < 0.075


def test_so_many_seeds_would_separate_a_difference_in_four_of_five_experiments() -> None:
    generator = random.Random(3)
    one, other = [0.91, 0.90, 0.925], [0.90, 0.905, 0.91]
    (found,) = statistics.compare(sample(other), [sample(one)])
    assert found.needed is not None
    differences = [a - b for a, b in zip(one, other, strict=True)]
    mean, deviation = float(np.mean(differences)), float(np.std(differences, ddof=1))
    seen = 0
    for _ in range(600):
        repeated = [generator.gauss(mean, deviation) for _ in range(found.needed)]
        seen += stats.ttest_1samp(repeated, 0).pvalue < 0.05
    assert 0.76 <= seen / 600 <= 0.9


def test_what_a_single_seed_allows() -> None:
    (found,) = statistics.compare({0: 0.9, 1: 0.91}, [{7: 0.95}])
    assert found.interval is None
    assert not found.separated
    low, high = statistics.binomial(0.9, 10_000)
    assert low < 0.9 < high
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.9 * 0.1 / 10_000), rel=0.01)


def test_a_repeated_seed_counts_once() -> None:
    once = statistics.by_seed([(0, 0.9), (1, 0.92)])
    assert statistics.by_seed([*[(0, 0.9)] * 4, (1, 0.92)]) == once
    assert statistics.by_seed([(0, 0.9), (0, 0.8), (1, 0.92)]) == {0: pytest.approx(0.85), 1: 0.92}
    assert statistics.spread([0.5, None]) == (0.5, None)
    assert statistics.spread([]) is None
