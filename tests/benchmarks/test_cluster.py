"""Tests of the cluster simulation against results calculated by hand."""

import importlib.util
import math
import statistics
import sys
from pathlib import Path
from types import ModuleType

import pytest

CLUSTER = Path(__file__).parents[2] / "benchmarks" / "cluster.py"
CALM = {
    "mtbf": math.inf,
    "slow_share": 0.0,
    "jitter": 0.0,
    "puts_per_second": math.inf,
    "gets_per_second": math.inf,
    "start_seconds": 0.0,
}


@pytest.fixture(scope="module")
def cluster() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cluster", CLUSTER)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["cluster"] = module  # dataclasses look the module up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("workers", [1, 7, 100, 1000])
def test_without_faults_a_job_takes_its_rounds(cluster: ModuleType, workers: int, dynamic: bool) -> None:
    found = cluster.simulate(cluster.Job(500, 9.0), cluster.Cluster(workers, dynamic, **CALM))
    assert found.finish == pytest.approx(9.0 * math.ceil(500 / workers)) and found.wasted == 0


def test_lost_workers_cost_what_the_exponential_distribution_predicts(cluster: ModuleType) -> None:
    """A unit of d seconds takes (m + r)(exp(d / m) - 1) if a worker is lost every m and returns after r."""
    mean, back, length, units = 1000.0, 120.0, 600.0, 400
    calm = CALM | {"mtbf": mean, "replace_seconds": back}
    found = [
        cluster.simulate(cluster.Job(units, length), cluster.Cluster(1, seed=seed, **calm)) for seed in range(40)
    ]
    wanted = (mean + back) * (math.exp(length / mean) - 1)
    assert statistics.mean(one.finish for one in found) / units == pytest.approx(wanted, rel=0.02)
    assert statistics.mean(one.wasted for one in found) / units == pytest.approx(wanted - length, rel=0.05)


def test_a_bucket_with_few_puts_per_second_sets_the_time(cluster: ModuleType) -> None:
    slow = CALM | {"puts_per_second": 10.0}
    found = cluster.simulate(cluster.Job(1000, 0.0, objects=3), cluster.Cluster(500, True, **slow))
    assert found.finish == pytest.approx(1000 * 3 / 10.0)


def test_every_worker_lists_the_markers_of_a_static_split_and_only_the_driver_of_a_dynamic_one(
    cluster: ModuleType,
) -> None:
    """2,000 markers are two LIST responses; a manifest is one GET. A unit is 2 GETs and 3 PUTs."""
    found = [cluster.simulate(cluster.Job(2000, 9.0), cluster.Cluster(10, out, **CALM)) for out in (False, True)]
    assert [one.requests - 2000 * 5 for one in found] == [10 * 2, 2 + 10]


def test_a_slow_worker_delays_a_static_split_but_not_a_dynamic_one(cluster: ModuleType) -> None:
    uneven = CALM | {"slow_share": 0.1, "slow_factor": 3.0}
    job = cluster.Job(2000, 10.0)
    shared, given = (cluster.simulate(job, cluster.Cluster(20, dynamic, **uneven)) for dynamic in (False, True))
    assert shared.finish == pytest.approx(3 * 10.0 * 100)
    assert given.finish < 0.5 * shared.finish


def test_the_same_seed_gives_the_same_outcome_and_another_seed_another_one(cluster: ModuleType) -> None:
    job = cluster.Job(300, 60.0)
    first, again, other = (cluster.simulate(job, cluster.Cluster(8, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("units_per_worker", [1, 2, 5, 9])
def test_units_in_progress_on_one_worker_share_one_teacher(cluster: ModuleType, units_per_worker: int) -> None:
    job, calm = cluster.Job(400, 9.0), CALM | {"units_per_worker": units_per_worker}
    found = [cluster.simulate(job, cluster.Cluster(workers, True, **calm)) for workers in (1, 10)]
    assert found[0].finish == pytest.approx(9.0 * 400)
    assert found[1].finish == pytest.approx(9.0 * 40, rel=0.05)
    few = cluster.simulate(cluster.Job(20, 9.0), cluster.Cluster(10, True, **calm))
    assert few.finish == pytest.approx(18.0)  # two units each


def test_losing_a_worker_costs_half_of_each_unit_in_progress(cluster: ModuleType) -> None:
    """Losses are rare here, and a waiting unit costs nothing."""
    rare = CALM | {"mtbf": 5_000.0, "replace_seconds": 0.0, "jitter": 0.2}
    found = {
        units_per_worker: cluster.simulate(
            cluster.Job(200_000, 10.0), cluster.Cluster(1, True, **rare, units_per_worker=units_per_worker)
        )
        for units_per_worker in (1, 2, 9)
    }
    lost = {units_per_worker: one.wasted / one.losses for units_per_worker, one in found.items()}
    assert lost == pytest.approx({1: 5.0, 2: 5.0, 9: 8 * 5.0}, rel=0.15)


def test_units_in_progress_on_a_slow_worker_delay_the_end(cluster: ModuleType) -> None:
    uneven = CALM | {"slow_share": 0.1, "slow_factor": 3.0, "jitter": 0.2, "dynamic": True}

    def mean(units_per_worker: int) -> float:
        clusters = [
            cluster.Cluster(20, seed=seed, units_per_worker=units_per_worker, **uneven) for seed in range(20)
        ]
        return statistics.mean(cluster.simulate(cluster.Job(2000, 10.0), one).finish for one in clusters)

    assert mean(9) > 1.03 * mean(1)
