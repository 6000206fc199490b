"""What `limbeck estimate` does: read or measure a machine's figures, work out the bill, and show it."""

import os
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from student.estimate.caveats import caveats, setup_of
from student.estimate.cost import Estimate, estimate, training_of
from student.estimate.cpu_load import BackgroundLoad
from student.estimate.machine import Hardware, MachineFigures, save_hardware
from student.estimate.student_trial import calibrate_student
from student.estimate.tables import draw_break_even, tables
from student.estimate.teacher_trial import calibrate
from student.estimate.workload import workload_of
from student.recipe import TrainRecipe
from teacher_cache.config import load_recipe
from teacher_cache.console import log_line, quiet
from teacher_cache.data.index import ShardIndex, load_index
from teacher_cache.errors import RecipeError
from teacher_cache.recipe import CacheRecipe
from teacher_cache.storage.atomic import atomic_file, write_json

BUSY = 0.1
"""The share of a machine that others may keep busy without a word."""


@dataclass(frozen=True)
class EstimateRequest:
    """The recipes, figures files ([] for a trial of this machine, of so many seconds), and how far to count."""

    judge: CacheRecipe
    student: TrainRecipe | None
    figures: list[Path]
    seconds: float
    workers: int
    students: int


def run_estimate(asked: EstimateRequest, png: Path | None, json_file: Path | None, save: Path | None) -> Estimate:
    """Estimate, print, and write what is asked for. Raises RecipeError before any trial where that cannot be."""
    for option, path in (("--png", png), ("--json", json_file), ("--save", save)):
        if path and not path.parent.is_dir():
            raise RecipeError(f"{option} '{path}': there is no folder '{path.parent}'; make it")
    if save and asked.figures:
        raise RecipeError("--save keeps what a trial finds, and --figures makes none; give one of them")
    machines = [load_recipe(path, Hardware) for path in asked.figures]
    told = next((machine.data for machine in machines if machine.data), None)
    if told:
        work, validation = workload_of(asked.judge, told.rows, told.classes), told.validation
    else:
        index = load_index(asked.judge.data.train)
        rows = tuple(shard.rows for shard in index.shards)
        work = workload_of(asked.judge, rows, len(index.classes))
        validation = load_index(asked.student.data.val).rows if asked.student else 0
    training = training_of(asked.student, work, asked.judge, validation)
    if not machines:
        machines = [_try_this_machine(asked, index)]
        if save:
            save_hardware(machines[0], save)
    found = estimate(asked.judge, work, training, machines, asked.workers, asked.students)
    for table in tables(found):
        Console().print(table)
    for machine in machines:
        for line in caveats(asked.judge, asked.student, work.classes, machine):
            log_line(line)
    if json_file:
        write_json(json_file, found.plain())
    if png:
        with atomic_file(png) as temporary:
            draw_break_even(found).savefig(temporary, format="png")
    return found


def _try_this_machine(asked: EstimateRequest, index: ShardIndex) -> Hardware:
    log_line(f"trying this machine for about {asked.seconds * (2 if asked.student else 1):.0f} s")
    with tempfile.TemporaryDirectory(prefix="limbeck-") as folder, quiet(True), BackgroundLoad() as others:
        trial = calibrate(asked.judge, index, asked.seconds, Path(folder))
        student = calibrate_student(asked.student, trial, asked.seconds) if asked.student else None
    if others.share > BUSY:
        log_line(
            f"other work kept {others.cores:.1f} of this machine's {os.cpu_count()} cores busy meanwhile, so the "
            "times below are too long; stop it and estimate again, or give --figures of a machine that was idle"
        )
    machine = MachineFigures(name=_name_of_this_machine())
    measured = setup_of(asked.judge, asked.student, len(index.classes))
    return Hardware(machine=machine, teacher=trial.teacher, student=student, measured=measured, bytes=trial.bytes)


def _name_of_this_machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}"
