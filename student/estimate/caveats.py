"""Where figures are of something else than the recipe: other networks, another size, other classes, another k."""

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
    """What a trial of these recipes on data of so many classes measures with."""
    name = student.model.name if student else None
    teacher, size, k = _teacher_name(recipe.teacher), recipe.views.size, min(recipe.cache.k, classes)
    return Setup(teacher=teacher, size=size, student=name, classes=classes, k=k)


def caveats(recipe: CacheRecipe, student: TrainRecipe | None, classes: int, machine: Hardware) -> list[str]:
    """A line on hours that will be others than these figures say, and one on bytes that they do not tell."""
    requested, measured, lines = setup_of(recipe, student, classes), machine.measured, list[str]()
    recipe_setup, file_setup = (
        setup.model_dump(include={"teacher", "size", "student"}) for setup in (requested, measured)
    )
    source = f"the figures of '{machine.machine.name}'"
    if any(recipe_setup[key] and file_setup[key] and recipe_setup[key] != file_setup[key] for key in recipe_setup):
        keys = [key for key in recipe_setup if recipe_setup[key] and file_setup[key]]
        lines.append(
            f"{source} are of {_describe_setup(file_setup, keys)}; the recipe has {_describe_setup(recipe_setup, keys)}: its hours will differ"
        )
    if not all(
        measured.matches(encoding)
        for name, encoding in possible_encodings(recipe, classes).items()
        if name in machine.bytes
    ):
        classes_text, k = measured.classes or "an unknown number of", measured.k or "unknown"
        lines.append(
            f"the bytes in {source} are of {classes_text} classes and k = {k}; here are {requested.classes} classes and "
            f"k = {requested.k}: what they do not tell is shown as ?"
        )
    return lines


def _describe_setup(setup: dict[str, object], keys: list[str]) -> str:
    templates = {"size": "at {} px", "student": "with the student {}"}
    details = [templates[key].format(setup[key]) for key in keys if key in templates]
    return " ".join([str(setup["teacher"] or "a teacher"), *details])


def _teacher_name(teacher: TeacherSpec) -> str:
    """A timm name; of a run that is not here, which figures do not need, its path."""
    if teacher.model:
        return teacher.model
    try:
        return load_card(network_folder(Path(teacher.run))).network.name
    except RunError:
        return teacher.run
