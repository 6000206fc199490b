"""Estimate of a cache before it is built: objects, bytes, hours, and the break-even with a live teacher."""

from dataclasses import asdict, dataclass
from typing import Any

from student.estimate.machine import Hardware
from student.estimate.workload import Workload, encoding_name, possible_encodings
from student.recipe import TrainRecipe
from teacher_cache.cache.encoding import Encoding
from teacher_cache.data.plan import PlanSpec, steps_per_epoch
from teacher_cache.errors import RecipeError
from teacher_cache.recipe import CacheRecipe


@dataclass(frozen=True)
class EncodingSize:
    """Size of the whole cache in one encoding. bytes: with digests; None if no figures file has it."""

    name: str
    chosen: bool
    bytes_per_target: float | None
    bytes: int | None
    objects: int


@dataclass(frozen=True)
class Training:
    """One student's training. views: in one epoch. evaluated: images in all evaluations together."""

    epochs: int
    views: int
    evaluated: int


@dataclass(frozen=True)
class WorkerSplit:
    """The labeling job on several workers. efficiency: share of their time spent on views, 0 to 1."""

    workers: int
    seconds: float
    efficiency: float


@dataclass(frozen=True)
class MachineCost:
    """Seconds on one machine. student: None if the figures file has no [student].

    live_epoch: what a live teacher adds to one epoch of one student. break_even: for 1, 2, ... students, epochs of
    each student after which the cache has cost less than a live teacher.
    """

    machine: str
    price_per_hour: float
    teacher: float
    student: float | None
    live_epoch: float
    break_even: tuple[float, ...]
    shared: tuple[WorkerSplit, ...]


@dataclass(frozen=True)
class Estimate:
    """All results. costs: one for each machine."""

    workload: Workload
    encodings: tuple[EncodingSize, ...]
    training: Training
    costs: tuple[MachineCost, ...]

    def to_json(self) -> dict[str, Any]:
        """The estimate as JSON values; times in seconds."""
        work = self.workload
        counts = {"images": work.images, "shards": len(work.rows), "views": work.views, "units": work.units}
        lists = {
            "stored": [asdict(size) for size in self.encodings],
            "bills": [asdict(cost) for cost in self.costs],
        }
        return counts | {"seeds": work.seeds, "training": asdict(self.training)} | lists


def estimate(
    recipe: CacheRecipe, work: Workload, training: Training, machines: list[Hardware], workers: int, students: int
) -> Estimate:
    """Estimate the cost on each machine, for 1 to `workers` workers and 1 to `students` students."""
    costs = tuple(_machine_cost(work, training, machine, workers, students) for machine in machines)
    chosen = encoding_name(recipe.cache.encoding, recipe.cache.values)
    encodings = tuple(
        _encoding_size(name, name == chosen, encoding, _known_bytes(name, encoding, machines), work)
        for name, encoding in possible_encodings(recipe, work.classes).items()
    )
    return Estimate(work, encodings, training, costs)


def training_of(
    recipe: TrainRecipe | None, work: Workload, cache_recipe: CacheRecipe, validation: int
) -> Training:
    """The student's training; without a recipe, a training that uses each seed once and evaluates nothing.

    Raises RecipeError if the student cannot learn from this cache.
    """
    if recipe is None:
        return Training(work.seeds, work.images, 0)
    if recipe.cache is None:
        raise RecipeError("the student's recipe has no [cache]; give a recipe that learns from a cache")
    if recipe.loss.distillation == "soft" and cache_recipe.cache.encoding == "hard":
        raise RecipeError(
            'the student uses soft distillation, and cache.encoding = "hard" stores no logits; use topk or dense'
        )
    spec = PlanSpec(cache_recipe.views, work.seeds, recipe.train.batch, recipe.train.streams)
    steps, epochs, evaluate_every = (
        steps_per_epoch(spec, list(work.rows)),
        recipe.schedule.epochs,
        recipe.train.evaluate_every,
    )
    if steps == 0:
        raise RecipeError(
            f"{work.images} images are less than one batch of {recipe.train.batch}; use a smaller train.batch"
        )
    return Training(epochs, steps * recipe.train.batch, -(-epochs // evaluate_every) * validation)


def _known_bytes(name: str, encoding: Encoding, machines: list[Hardware]) -> float | None:
    """Bytes of a target without its digest, from the last figures with the same number of classes and k."""
    sizes = (machine.bytes.get(name) for machine in reversed(machines) if machine.measured.matches(encoding))
    return next((size for size in sizes if size is not None), None)


def _encoding_size(
    name: str, chosen: bool, encoding: Encoding, payload: float | None, work: Workload
) -> EncodingSize:
    bytes_per_target = None if payload is None else payload + encoding.digest_bits / 8
    total = None if bytes_per_target is None else round(bytes_per_target * work.views)
    return EncodingSize(name, chosen, bytes_per_target, total, work.objects(encoding))


def _machine_cost(
    work: Workload, training: Training, machine: Hardware, workers: int, students: int
) -> MachineCost:
    teacher_rates, student = machine.teacher, None
    if machine.student:
        student_rates, views = machine.student, training.epochs * training.views
        student = student_rates.start_seconds + views / student_rates.images_per_second
        student += training.evaluated / student_rates.evaluated_per_second
    teacher = teacher_rates.start_seconds + work.views / teacher_rates.views_per_second
    live_epoch = training.views / teacher_rates.teacher_images_per_second
    return MachineCost(
        machine.machine.name,
        machine.machine.price_per_hour,
        teacher,
        student,
        live_epoch,
        tuple(teacher / (live_epoch * count) for count in range(1, students + 1)),
        tuple(_worker_split(work, machine, count) for count in _worker_counts(workers)),
    )


def _worker_split(work: Workload, machine: Hardware, workers: int) -> WorkerSplit:
    rates = machine.teacher
    seconds = rates.start_seconds + work.largest_share(workers) / rates.views_per_second
    return WorkerSplit(workers, seconds, work.views / rates.views_per_second / workers / seconds)


def _worker_counts(limit: int) -> list[int]:
    """1, 2, 4, ... and `limit` itself."""
    return [*(2**power for power in range(limit.bit_length()) if 2**power < limit), limit]
