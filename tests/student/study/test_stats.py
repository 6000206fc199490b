import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from student.study.stats import difference, holm, power, runs_needed, sampling_error, spread
from teacher_cache.rng import generator

ANOREXIA = ([80.0, 85.2, 91.5, 76.4], [78.9, 73.1, 75.5, 80.2, 79.9])


def test_the_spread_of_known_values() -> None:
    result = spread([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert (result.n, result.mean, result.min, result.max) == (8, 5.0, 2.0, 9.0)
    assert result.std == pytest.approx(math.sqrt(32 / 7))
    assert result.interval == pytest.approx(
        (5 - 2.3646 * result.std / math.sqrt(8), 5 + 2.3646 * result.std / math.sqrt(8)), abs=1e-4
    )


def test_the_interval_of_accuracies_stays_between_0_and_100() -> None:
    assert spread([99.0, 97.0]).interval == (pytest.approx(98 - 12.7062, abs=1e-3), 100.0)
    assert spread([1.0, 0.0, 3.0]).interval == (0.0, pytest.approx(4 / 3 + 4.3027 * math.sqrt(7 / 9), abs=1e-3))


def test_one_value_has_no_spread_and_no_interval() -> None:
    result = spread([3.0])
    assert (result.n, result.mean, result.std, result.interval) == (1, 3.0, None, None)


def test_welchs_test_equals_scipys() -> None:
    a, b = ANOREXIA
    result = difference(a, b)
    gap = np.mean(b) - np.mean(a)
    test = stats.ttest_ind(b, a, equal_var=False)
    assert result.mean == pytest.approx(gap)
    assert result.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert result.p == pytest.approx(test.pvalue)
    assert result.bootstrap is not None and result.bootstrap[0] < gap < result.bootstrap[1]


def test_the_same_values_give_the_same_bootstrap() -> None:
    assert difference(*ANOREXIA) == difference(*ANOREXIA)


@pytest.mark.parametrize(("a", "b"), [([1.0], [2.0, 3.0]), ([1.0, 2.0], [5.0]), ([1.0, 1.0], [2.0, 2.0])])
def test_values_without_variance_give_no_test_result(a: list[float], b: list[float]) -> None:
    result = difference(a, b)
    assert result.mean == pytest.approx(np.mean(b) - np.mean(a))
    assert (result.p, result.interval, result.bootstrap, result.is_significant) == (None, None, None, False)


def test_one_side_without_variance_is_tested_by_the_variance_of_the_other() -> None:
    result = difference([70.0, 70.0, 70.0], [75.0, 75.1, 75.3])
    assert result.is_significant and result.p is not None and result.p < 0.01


def test_the_interval_covers_the_true_difference_at_its_nominal_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates 800 studies of 5 and 8 runs with different spreads; the percentile bootstrap is too narrow."""
    monkeypatch.setattr("student.study.stats.RESAMPLES", 299)
    rng, held, held_by_bootstrap = generator("coverage"), 0, 0
    for _ in range(800):
        found = difference(rng.normal(75, 0.2, 5).tolist(), rng.normal(75.5, 0.6, 8).tolist())
        assert found.interval is not None and found.bootstrap is not None
        held += found.interval[0] < 0.5 < found.interval[1]
        held_by_bootstrap += found.bootstrap[0] < 0.5 < found.bootstrap[1]
    assert 0.935 <= held / 800 <= 0.965
    assert 0.86 <= held_by_bootstrap / 800 <= held / 800


@pytest.mark.parametrize(("effect", "runs"), [(0.2, 394), (0.5, 64), (0.8, 26), (1.0, 17), (2.0, 6)])
def test_the_runs_needed_equal_those_of_published_tables(effect: float, runs: int) -> None:
    """Values from Cohen's tables for two groups, 5 % two-sided, 80 % power."""
    assert runs_needed(effect, 1.0, 1.0) == runs
    assert runs_needed(-effect * 0.1, 0.1, 0.1) == runs


def test_the_power_equals_the_simulated_detection_rate() -> None:
    rng = generator("power")
    first, second = rng.normal(0, 0.3, (4000, 6)), rng.normal(0.4, 0.2, (4000, 6))
    result = stats.ttest_ind(second, first, equal_var=False, axis=1).pvalue < 0.05
    assert power(6, 0.4, 0.3, 0.2) == pytest.approx(result.mean(), abs=0.025)


@given(st.floats(0.05, 5), st.floats(0.01, 3), st.floats(0.01, 3))
def test_fewer_runs_than_needed_have_too_little_power(gap: float, first: float, second: float) -> None:
    runs = runs_needed(gap, first, second)
    assert runs is not None and power(runs, gap, first, second) >= 0.8
    assert runs == 2 or power(runs - 1, gap, first, second) < 0.8


def test_no_number_of_runs_detects_a_zero_difference() -> None:
    assert runs_needed(0.0, 1.0, 1.0) is None
    assert runs_needed(1e-6, 1.0, 1.0) is None
    assert runs_needed(1.0, 0.0, 0.0) == 2


def test_holms_adjustment_of_a_known_example() -> None:
    assert holm([0.01, None, 0.04, 0.03, 0.005]) == pytest.approx([0.03, None, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_sampling_error_equals_the_binomials() -> None:
    assert sampling_error(80.0, 10_000) == pytest.approx(0.4)
    assert sampling_error(100.0, 50) == 0.0
