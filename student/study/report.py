"""Parts that the reports of all studies share."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from student.study.stats import epoch_spreads, sampling_error, spread
from student.study.trials import Trials
from teacher_cache.storage.atomic import write_json

REPORT_NAME, PLOT_NAME = "report.json", "report.png"
LAST_EPOCHS = 5
"""Evaluated epochs at the end of a run that `epoch_to_epoch_rms` uses."""


def describe_trials(trials: Trials) -> dict[str, Any]:
    """All results of an arm, as JSON values."""
    final = spread(trials.values)
    return {
        "label": trials.label,
        **asdict(final),
        "sampling_error": sampling_error(final.mean, trials.images),
        "images": trials.images,
        "by_seed": dict(trials.final),
        "failed": list(trials.failed),
        "epochs": [
            {"epoch": epoch, **asdict(epoch_spread)}
            for epoch, epoch_spread in epoch_spreads(trials.curves).items()
        ],
        "epoch_to_epoch": epoch_to_epoch_rms(trials.curves),
        "best_above_last": best_above_last(trials.curves),
    }


def epoch_to_epoch_rms(curves: Mapping[int, Mapping[int, float]]) -> float | None:
    """RMS change of accuracy between evaluated epochs, in points, at the end of the runs; None for one epoch."""
    moves = [np.diff(list(curve.values())[-LAST_EPOCHS:]) for curve in curves.values()]
    all_moves = np.concatenate(moves)
    return float(np.sqrt(np.mean(all_moves**2))) if len(all_moves) else None


def best_above_last(curves: Mapping[int, Mapping[int, float]]) -> float:
    """Points that selecting the best epoch of each run by test accuracy would add to the mean."""
    return float(np.mean([max(curve.values()) - list(curve.values())[-1] for curve in curves.values()]))


def points(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def write_report(folder: Path, facts: dict[str, Any]) -> None:
    write_json(folder / REPORT_NAME, {"format": 1, **facts})
