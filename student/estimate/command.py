"""`limbeck estimate`: read or measure the figures of a machine, compute the cost, and print it."""

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
from student.estimate.machine import Hardware, MachineFigures, is_edited, save_hardware
from student.estimate.student_trial import calibrate_student
from student.estimate.tables import draw_estimate, tables
from student.estimate.teacher_trial import calibrate
from student.estimate.workload import workload_of
from student.recipe import TrainRecipe
from teacher_cache.config import load_recipe, resolved
from teacher_cache.console import log_line, quiet
from teacher_cache.data.index import ShardIndex, load_index
from teacher_cache.distributed.machine import cores
from teacher_cache.errors import RecipeError
from teacher_cache.figure import render_png
from teacher_cache.recipe import CacheRecipe
from teacher_cache.storage.atomic import write_atomic, write_json
from teacher_cache.storage.output import check_outputs, origin_of

MOST_BACKGROUND_LOAD = 0.1
"""Share of the cores that other processes may use without a warning."""


@dataclass(frozen=True)
class EstimateRequest:
    """What to estimate.

    figures: figures files; [] means a trial of this machine. seconds: length of the trial, for each of teacher and
    student. workers, students: the largest numbers in the tables.
    """

    cache: CacheRecipe
    student: TrainRecipe | None
    figures: list[Path]
    seconds: float
    workers: int
    students: int


def run_estimate(
    request: EstimateRequest,
    png: Path | None,
    json_file: Path | None,
    save: Path | None,
    overwrite: bool = False,
) -> Estimate:
    """Estimate, print the tables, and write the requested files. Raises RecipeError before any trial."""
    origin = origin_of("estimate", _inputs_of(request))
    check_outputs({"--png": png, "--json": json_file, "--save": save}, origin, overwrite)
    if save and save.exists() and not overwrite and is_edited(save):
        raise RecipeError(
            f"--save '{save}' was edited after it was saved; choose another path, or add --overwrite"
        )
    if save and request.figures:
        raise RecipeError(
            "--save stores the result of a trial, and with --figures no trial runs; give only one of them"
        )
    machines = [load_recipe(path, Hardware) for path in request.figures]
    data = next((machine.data for machine in machines if machine.data), None)
    if data:
        work, validation = workload_of(request.cache, data.rows, data.classes), data.validation
        log_line(
            f"data set of the figures file: {data.images:,} images of {data.classes:,} classes; data.train "
            f"'{request.cache.data.train}' is not read"
        )
    else:
        index = load_index(request.cache.data.train)
        rows = tuple(shard.rows for shard in index.shards)
        work = workload_of(request.cache, rows, len(index.classes))
        validation = load_index(request.student.data.val).rows if request.student else 0
    training = training_of(request.student, work, request.cache, validation)
    if not machines:
        machines = [_calibrate_this_machine(request, index)]
        if save:
            save_hardware(machines[0], save, origin)
    result = estimate(request.cache, work, training, machines, request.workers, request.students)
    for table in tables(result):
        Console().print(table)
    for machine in machines:
        for line in caveats(request.cache, request.student, work.classes, machine):
            log_line(line)
    if json_file:
        write_json(json_file, {"made_by": origin} | result.to_json())
    if png:
        write_atomic(png, render_png(draw_estimate(result), origin))
    return result


def _inputs_of(request: EstimateRequest) -> list[object]:
    student = resolved(request.student) if request.student else None
    limits = request.seconds, request.workers, request.students
    return [resolved(request.cache), student, request.figures, *limits]


def _calibrate_this_machine(request: EstimateRequest, index: ShardIndex) -> Hardware:
    log_line(f"measuring this machine for about {request.seconds * (2 if request.student else 1):.0f} s")
    with tempfile.TemporaryDirectory(prefix="limbeck-") as folder, quiet(True), BackgroundLoad() as background:
        trial = calibrate(request.cache, index, request.seconds, Path(folder))
        student = calibrate_student(request.student, trial, request.seconds) if request.student else None
    if background.share > MOST_BACKGROUND_LOAD:
        log_line(
            f"other processes used {background.cores:.1f} of {os.cpu_count()} cores during the trial, so the "
            "times below are too long; stop them and estimate again, or give --figures of an idle machine"
        )
    machine = MachineFigures(name=_machine_name())
    measured = setup_of(request.cache, request.student, len(index.classes))
    return Hardware(machine=machine, teacher=trial.teacher, student=student, measured=measured, bytes=trial.bytes)


def _machine_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{cores()} cores, {platform.machine()}"
