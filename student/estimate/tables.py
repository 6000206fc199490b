"""Show an estimate: tables for a terminal, and a plot."""

from typing import Any

from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from student.estimate.cost import Estimate, MachineCost
from student.report.plots import new_figure
from teacher_cache.console import count_of, format_bytes

HOUR = 3600


def tables(estimate: Estimate) -> list[Table]:
    """Counts, encodings, times with break-even, and for each machine a table by number of workers."""
    return [
        _counts(estimate),
        _encodings(estimate),
        _hours(estimate),
        *(_workers(cost) for cost in estimate.costs),
    ]


def _counts(estimate: Estimate) -> Table:
    work, training = estimate.workload, estimate.training
    table = Table(title="work", show_header=False)
    table.add_row(
        "images",
        f"{work.images:,} in {count_of(len(work.rows), 'shard')}, {count_of(work.classes, 'class', 'classes')}",
    )
    table.add_row("views", f"{work.views:,}, with {count_of(work.seeds, 'seed')}")
    table.add_row("units", f"{work.units:,} of up to {work.seeds_per_unit * max(work.rows):,} views")
    table.add_row("student", f"{training.epochs:,} epochs of {training.views:,} views")
    return table


def _encodings(estimate: Estimate) -> Table:
    table = Table(title="cache size by encoding, with digests")
    for name in ("encoding", "bytes/target", "total", "objects"):
        table.add_column(name, justify="left" if name == "encoding" else "right")
    for size in estimate.encodings:
        bytes_per_target = "?" if size.bytes_per_target is None else f"{size.bytes_per_target:.2f}"
        total = "?" if size.bytes is None else format_bytes(size.bytes)
        name = f"{size.name} (recipe)" if size.chosen else size.name
        table.add_row(name, bytes_per_target, total, f"{size.objects:,}")
    return table


def _hours(estimate: Estimate) -> Table:
    """One column per machine."""
    costs = estimate.costs
    table = Table(title="one worker: time, and break-even with a live teacher")
    table.add_column("")
    for cost in costs:
        table.add_column(escape(cost.machine), justify="right")
    table.add_row("labeling job", *(_with_price(cost.teacher, cost) for cost in costs))
    table.add_row("student training", *(_with_price(cost.student, cost) for cost in costs))
    live = (f"+ {format_seconds(cost.live_epoch)}" for cost in costs)
    table.add_row("live teacher, per epoch", *live, end_section=True)
    for index in range(len(costs[0].break_even)):
        epochs = (_epochs(cost.break_even[index], estimate) for cost in costs)
        table.add_row(f"break-even, {count_of(index + 1, 'student')}", *epochs)
    return table


def _workers(cost: MachineCost) -> Table:
    table = Table(title=f"labeling job by workers: {escape(cost.machine)}")
    for name in ("workers", "time", "efficiency"):
        table.add_column(name, justify="right")
    for split in cost.shared:
        table.add_row(f"{split.workers:,}", format_seconds(split.seconds), f"{split.efficiency:.0%}")
    return table


def _epochs(epochs: float, estimate: Estimate) -> str:
    suffix = f" (> {estimate.training.epochs:,})" if epochs > estimate.training.epochs else ""
    return f"{epochs:,.1f} epochs{suffix}"


def _with_price(seconds: float | None, cost: MachineCost) -> str:
    if seconds is None:
        return "?"
    price = f", {seconds / HOUR * cost.price_per_hour:,.2f}" if cost.price_per_hour else ""
    return format_seconds(seconds) + price


def format_seconds(seconds: float) -> str:
    """Format a time in hours, minutes or seconds, the largest unit of which there is at least one."""
    if seconds >= HOUR:
        return f"{seconds / HOUR:,.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def draw_estimate(estimate: Estimate) -> Figure:
    """Plot bytes by encoding, time of the job by workers, and time of the teacher by epochs (cached or live)."""
    figure, (sizes, workers, break_even) = new_figure(15, 4.4, 3)
    known = [size for size in estimate.encodings if size.bytes is not None]
    colors = ["C1" if size.chosen else "C0" for size in known]
    bars = sizes.barh([size.name for size in known], [size.bytes for size in known], color=colors, log=True)
    sizes.bar_label(bars, [format_bytes(size.bytes or 0) for size in known], padding=3)
    sizes.margins(x=0.3)
    sizes.set(xticks=[], title="cache size, with digests")
    sizes.minorticks_off()
    scale, unit = (HOUR, "hours") if estimate.costs[0].teacher >= HOUR else (60, "minutes")
    for cost in estimate.costs:
        workers.loglog(
            [split.workers for split in cost.shared],
            [split.seconds / scale for split in cost.shared],
            "o-",
            label=cost.machine,
        )
    workers.set(xlabel="workers", ylabel=f"time, {unit}", title="labeling job")
    workers.legend()
    _draw_break_even(break_even, estimate.costs[0], estimate.training.epochs, scale, unit)
    return figure


def _draw_break_even(axes: Any, cost: MachineCost, epochs: int, scale: int, unit: str) -> None:
    for students in range(1, len(cost.break_even) + 1):
        label = f"live teacher, {students} student{'s' * (students > 1)}"
        axes.plot([0, epochs], [0, students * epochs * cost.live_epoch / scale], label=label)
    axes.plot([0, epochs], 2 * [cost.teacher / scale], "k--", label="cache, any number of students")
    axes.set(xlabel="epochs per student", ylabel=f"time of the teacher, {unit}", title=cost.machine)
    axes.legend()
