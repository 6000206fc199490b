"""How an estimate is shown: tables for a terminal, and a picture."""

from typing import Any

from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from student.estimate.cost import Estimate, MachineCost
from student.report.plots import new_figure
from teacher_cache.console import count_of, format_bytes

HOUR = 3600


def tables(estimate: Estimate) -> list[Table]:
    """Counts, encodings, then hours, break-even and workers of each machine."""
    return [
        _counts(estimate),
        _encodings(estimate),
        _hours(estimate),
        *(_workers(bill) for bill in estimate.bills),
    ]


def _counts(estimate: Estimate) -> Table:
    work, training = estimate.workload, estimate.training
    table = Table(title="the work", show_header=False)
    table.add_row(
        "images",
        f"{work.images:,} in {count_of(len(work.rows), 'shard')}, {count_of(work.classes, 'class', 'classes')}",
    )
    table.add_row("views", f"{work.views:,}, under {work.seeds:,} seeds")
    table.add_row("units", f"{work.units:,} of up to {work.seeds_per_unit * max(work.rows):,} views")
    table.add_row("a student", f"{training.epochs:,} epochs of {training.views:,} views")
    return table


def _encodings(estimate: Estimate) -> Table:
    table = Table(title="the cache, in each encoding (digests included)")
    for name in ("encoding", "bytes a target", "in all", "objects"):
        table.add_column(name, justify="left" if name == "encoding" else "right")
    for stored in estimate.stored:
        each = "?" if stored.bytes_per_target is None else f"{stored.bytes_per_target:.2f}"
        whole = "?" if stored.bytes is None else format_bytes(stored.bytes)
        name = f"{stored.name} (the recipe's)" if stored.chosen else stored.name
        table.add_row(name, each, whole, f"{stored.objects:,}")
    return table


def _hours(estimate: Estimate) -> Table:
    """A machine a column."""
    bills = estimate.bills
    table = Table(title="one worker's time, and when the cache has cost less than a live teacher")
    table.add_column("")
    for bill in bills:
        table.add_column(escape(bill.machine), justify="right")
    table.add_row("the teacher", *(_with_price(bill.teacher, bill) for bill in bills))
    table.add_row("a student", *(_with_price(bill.student, bill) for bill in bills))
    live = (f"+ {time_of(bill.live_epoch)}" for bill in bills)
    table.add_row("a live teacher, an epoch", *live, end_section=True)
    for place in range(len(bills[0].break_even)):
        even = (_epochs(bill.break_even[place], estimate) for bill in bills)
        table.add_row(f"paid by {count_of(place + 1, 'student')} after", *even)
    return table


def _workers(bill: MachineCost) -> Table:
    table = Table(title=f"the teacher's job shared out: {escape(bill.machine)}")
    for name in ("workers", "time", "efficiency"):
        table.add_column(name, justify="right")
    for shared in bill.shared:
        table.add_row(f"{shared.workers:,}", time_of(shared.seconds), f"{shared.efficiency:.0%}")
    return table


def _epochs(epochs: float, estimate: Estimate) -> str:
    late = f" (> {estimate.training.epochs:,})" if epochs > estimate.training.epochs else ""
    return f"{epochs:,.1f} epochs{late}"


def _with_price(seconds: float | None, bill: MachineCost) -> str:
    if seconds is None:
        return "?"
    price = f", {seconds / HOUR * bill.price_per_hour:,.2f}" if bill.price_per_hour else ""
    return time_of(seconds) + price


def time_of(seconds: float) -> str:
    """Hours from one on, else minutes, else seconds."""
    if seconds >= HOUR:
        return f"{seconds / HOUR:,.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def draw_break_even(estimate: Estimate) -> Figure:
    """Bytes by encoding; the job's hours by workers; the teacher's hours by epochs, cached or live."""
    figure, (sizes, shared, paid) = new_figure(15, 4.4, 3)
    stored = [one for one in estimate.stored if one.bytes is not None]
    colours = ["C1" if one.chosen else "C0" for one in stored]
    bars = sizes.barh([one.name for one in stored], [one.bytes for one in stored], color=colours, log=True)
    sizes.bar_label(bars, [format_bytes(one.bytes or 0) for one in stored], padding=3)
    sizes.margins(x=0.3)
    sizes.set(xticks=[], title="the cache, digests included")
    sizes.minorticks_off()
    scale, unit = (HOUR, "hours") if estimate.bills[0].teacher >= HOUR else (60, "minutes")
    for bill in estimate.bills:
        shared.loglog(
            [one.workers for one in bill.shared],
            [one.seconds / scale for one in bill.shared],
            "o-",
            label=bill.machine,
        )
    shared.set(xlabel="workers", ylabel=unit, title="the teacher's job")
    shared.legend()
    _draw_break_even(paid, estimate.bills[0], estimate.training.epochs, scale, unit)
    return figure


def _draw_break_even(axis: Any, bill: MachineCost, epochs: int, scale: int, unit: str) -> None:
    for students in range(1, len(bill.break_even) + 1):
        label = f"live teacher, {students} student{'s' * (students > 1)}"
        axis.plot([0, epochs], [0, students * epochs * bill.live_epoch / scale], label=label)
    axis.plot([0, epochs], 2 * [bill.teacher / scale], "k--", label="the cache, any number")
    axis.set(xlabel="epochs of each student", ylabel=f"{unit} of the teacher", title=bill.machine)
    axis.legend()
