"""Train a vision transformer from cached targets, without a teacher in memory."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from student.bundle.bundle import Bundle as Bundle
    from student.bundle.bundle import open_bundle as open_bundle
    from student.bundle.export import ExportOptions as ExportOptions
    from student.bundle.export import export as export
    from student.evaluation.scores import Bootstrap as Bootstrap
    from student.evaluation.scores import evaluate as evaluate
    from student.model.student import Heads as Heads
    from student.model.student import Student as Student
    from student.model.student import fuse as fuse
    from student.recipe import TrainRecipe as TrainRecipe
    from student.training.loop import train as train
    from student.training.loss import distill_loss as distill_loss

_MODULES = {
    "Bootstrap": "student.evaluation.scores",
    "Bundle": "student.bundle.bundle",
    "ExportOptions": "student.bundle.export",
    "Heads": "student.model.student",
    "Student": "student.model.student",
    "TrainRecipe": "student.recipe",
    "distill_loss": "student.training.loss",
    "evaluate": "student.evaluation.scores",
    "export": "student.bundle.export",
    "fuse": "student.model.student",
    "open_bundle": "student.bundle.bundle",
    "train": "student.training.loop",
}
"""The public names. Their modules are imported on first use, so that importing the package stays cheap."""

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
