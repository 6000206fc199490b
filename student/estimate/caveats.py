"""Warnings about figures that were measured with other networks, views, classes or k than the recipe has."""

from pathlib import Path

from student.estimate.machine import Hardware, Setup
from student.estimate.workload import possible_encodings
from student.recipe import TrainRecipe
from teacher_cache.errors import RunError
from teacher_cache.models.card import load_card
from teacher_cache.models.run_folder import network_folder
from teacher_cache.models.spec import TeacherSpec
from teacher_cache.recipe import CacheRecipe


def setup_of(recipe: CacheRecipe, student: TrainRecipe | None, classes: int) -> Setup:
    """The setup that a trial of these recipes measures. classes: number of classes of the data."""
    name = student.model.name if student else None
    teacher, size, k = _teacher_name(recipe.teacher), recipe.views.size, min(recipe.cache.k, classes)
    return Setup(teacher=teacher, size=size, student=name, classes=classes, k=k)


def caveats(recipe: CacheRecipe, student: TrainRecipe | None, classes: int, machine: Hardware) -> list[str]:
    """One line if the times were measured with another setup, and one if the bytes were."""
    requested, measured, lines = setup_of(recipe, student, classes), machine.measured, list[str]()
    recipe_setup, file_setup = (
        setup.model_dump(include={"teacher", "size", "student"}) for setup in (requested, measured)
    )
    source = f"the figures of '{machine.machine.name}'"
    if any(recipe_setup[key] and file_setup[key] and recipe_setup[key] != file_setup[key] for key in recipe_setup):
        keys = [key for key in recipe_setup if recipe_setup[key] and file_setup[key]]
        lines.append(
            f"{source} were measured with {_describe_setup(file_setup, keys)}, and the recipe has "
            f"{_describe_setup(recipe_setup, keys)}; its times will differ"
        )
    if not all(
        measured.matches(encoding)
        for name, encoding in possible_encodings(recipe, classes).items()
        if name in machine.bytes
    ):
        classes_text, k = measured.classes or "an unknown number of", measured.k or "unknown"
        lines.append(
            f"the bytes in {source} are for {classes_text} classes and k = {k}, and the recipe has "
            f"{requested.classes} classes and k = {requested.k}; unknown sizes are shown as ?"
        )
    return lines


def _describe_setup(setup: dict[str, object], keys: list[str]) -> str:
    templates = {"size": "at {} px", "student": "and the student {}"}
    details = [templates[key].format(setup[key]) for key in keys if key in templates]
    return " ".join([str(setup["teacher"] or "a teacher"), *details])


def _teacher_name(teacher: TeacherSpec) -> str:
    """The timm name of the teacher; if its run is not on this machine, the path of the run."""
    if teacher.model:
        return teacher.model
    try:
        return load_card(network_folder(Path(teacher.run))).network.name
    except RunError:
        return teacher.run
