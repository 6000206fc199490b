"""Parts that the reports of all studies share."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from student.study.stats import epoch_spreads, sampling_error, spread
from student.study.trials import Trials
from teacher_cache.storage.atomic import write_json

REPORT, PICTURE = "report.json", "report.png"
LAST_EPOCHS = 5
"""The epochs over which a run's own trembling is measured."""


def describe_trials(trials: Trials) -> dict[str, Any]:
    """All of an arm's numbers, plain."""
    final = spread(trials.values)
    return {
        "label": trials.label,
        **asdict(final),
        "sampling_error": sampling_error(final.mean, trials.images),
        "images": trials.images,
        "by_seed": dict(trials.final),
        "failed": list(trials.failed),
        "epochs": [{"epoch": epoch, **asdict(part)} for epoch, part in epoch_spreads(trials.curves).items()],
        "epoch_to_epoch": epoch_to_epoch_rms(trials.curves),
        "best_above_last": best_above_last(trials.curves),
    }


def epoch_to_epoch_rms(curves: Mapping[int, Mapping[int, float]]) -> float | None:
    """How far accuracy moves from one measured epoch to the next, near the end: root mean square, in points."""
    moves = [np.diff(list(curve.values())[-LAST_EPOCHS:]) for curve in curves.values()]
    every = np.concatenate(moves)
    return float(np.sqrt(np.mean(every**2))) if len(every) else None


def best_above_last(curves: Mapping[int, Mapping[int, float]]) -> float:
    """What picking each run's best epoch by its test accuracy would add to the mean, in points."""
    return float(np.mean([max(curve.values()) - list(curve.values())[-1] for curve in curves.values()]))


def points(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def write_report(folder: Path, told: dict[str, Any]) -> None:
    write_json(folder / REPORT, {"format": 1, **told})
