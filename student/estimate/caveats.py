"""Where figures are of something else than the recipe: other networks, another size, other classes, another k."""

from pathlib import Path

from student.estimate.machine import Hardware, Setup
from student.estimate.workload import encodings_of
from student.recipe import TrainRecipe
from teacher_cache.errors import RunError
from teacher_cache.models.card import load_card
from teacher_cache.models.run_folder import network_folder
from teacher_cache.models.spec import TeacherSpec
from teacher_cache.recipe import CacheRecipe


def setup_of(recipe: CacheRecipe, student: TrainRecipe | None, classes: int) -> Setup:
    """What a trial of these recipes on data of so many classes measures with."""
    name = student.model.name if student else None
    teacher, size, k = _name_of(recipe.teacher), recipe.views.size, min(recipe.cache.k, classes)
    return Setup(teacher=teacher, size=size, student=name, classes=classes, k=k)


def caveats(recipe: CacheRecipe, student: TrainRecipe | None, classes: int, machine: Hardware) -> list[str]:
    """A line on hours that will be others than these figures say, and one on bytes that they do not tell."""
    asked, measured, lines = setup_of(recipe, student, classes), machine.measured, list[str]()
    own, theirs = (one.model_dump(include={"teacher", "size", "student"}) for one in (asked, measured))
    whose = f"the figures of '{machine.machine.name}'"
    if any(own[key] and theirs[key] and own[key] != theirs[key] for key in own):
        shown = [key for key in own if own[key] and theirs[key]]
        lines.append(
            f"{whose} are of {_told(theirs, shown)}; the recipe has {_told(own, shown)}: its hours will differ"
        )
    if not all(
        measured.matches(one) for name, one in encodings_of(recipe, classes).items() if name in machine.bytes
    ):
        many, k = measured.classes or "an unknown number of", measured.k or "unknown"
        lines.append(
            f"the bytes in {whose} are of {many} classes and k = {k}; here are {asked.classes} classes and "
            f"k = {asked.k}: what they do not tell is shown as ?"
        )
    return lines


def _told(setting: dict[str, object], shown: list[str]) -> str:
    words = {"size": "at {} px", "student": "with the student {}"}
    others = [words[key].format(setting[key]) for key in shown if key in words]
    return " ".join([str(setting["teacher"] or "a teacher"), *others])


def _name_of(teacher: TeacherSpec) -> str:
    """A timm name; of a run that is not here, which figures do not need, its path."""
    if teacher.model:
        return teacher.model
    try:
        return load_card(network_folder(Path(teacher.run))).network.name
    except RunError:
        return teacher.run
