import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from student.report import accuracy_table, draw_curves
from teacher_cache.errors import RunError


def drawn(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def coloured(picture: NDArray[np.uint8]) -> int:
    """How many pixels are neither black, white nor grey: those of the curves."""
    low, high = picture.min(axis=2).astype(int), picture.max(axis=2).astype(int)
    return int((high - low > 40).sum())


def journal(run: Path, heads: tuple[str, ...], epochs: int = 4) -> Path:
    """A run's folder with a journal in which every second epoch was measured."""
    run.mkdir()
    lines = [
        {
            "epoch": epoch,
            "loss": 3 / epoch,
            "loss_class": 2 / epoch,
            "accuracy": {head: 60 + 9 * epoch - 8 * n for n, head in enumerate(heads)} if epoch % 2 == 0 else {},
        }
        for epoch in range(1, epochs + 1)
    ]
    (run / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_curves_of_runs_with_and_without_a_second_head_stand_in_one_picture(
    student_run: Path, alone_run: Path, tmp_path: Path
) -> None:
    draw_curves({"distilled": student_run, "alone": alone_run}, tmp_path / "curves.png")
    both = drawn(tmp_path / "curves.png")
    assert both.shape[0] > 300 and both.shape[1] > 800
    draw_curves({"alone": alone_run}, tmp_path / "alone.png")
    assert 0 < coloured(drawn(tmp_path / "alone.png")) < coloured(both)


def test_every_head_has_a_curve_of_its_own(tmp_path: Path) -> None:
    runs = {
        "one": journal(tmp_path / "one", ("class",)),
        "two": journal(tmp_path / "two", ("class", "distill", "joint")),
    }
    counts = []
    for name, run in runs.items():
        draw_curves({name: run}, tmp_path / f"{name}.png")
        counts.append(coloured(drawn(tmp_path / f"{name}.png")))
    assert counts[1] > counts[0] * 1.3


def test_a_run_that_was_not_yet_measured_is_drawn_by_its_loss(tmp_path: Path) -> None:
    run = journal(tmp_path / "young", ("class",), epochs=1)
    draw_curves({"young": run, "old": journal(tmp_path / "old", ("class",))}, tmp_path / "both.png")
    draw_curves({"young": run}, tmp_path / "curves.png")
    assert drawn(tmp_path / "curves.png").shape == drawn(tmp_path / "both.png").shape


def test_a_run_without_a_journal_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"run '{tmp_path}' has no journal to draw; train it first"):
        draw_curves({"none": tmp_path}, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_the_table_leaves_a_dash_where_a_head_is_not() -> None:
    rows = [
        ("teacher", {"class": 91.5}, 12.4),
        ("student", {"class": 80.0, "distill": 81.25, "joint": 82.126}, 100.0),
        ("pack", {}, 3.0),
    ]
    printed = StringIO()
    Console(file=printed, width=100).print(accuracy_table("top-1", rows))
    cells = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in printed.getvalue().splitlines() if "│" in line
    ]
    assert cells == [
        ["teacher", "91.50 %", "-", "-", "12"],
        ["student", "80.00 %", "81.25 %", "82.13 %", "100"],
        ["pack", "-", "-", "-", "3"],
    ]
