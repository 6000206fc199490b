"""The folders of trained networks: a bundle itself, or `final` and `final_ema` inside a run."""

from pathlib import Path

from teacher_cache.errors import RunError

FINAL = "final"
"""The folder of the final weights inside a run. A run is finished if it exists."""
FINAL_EMA = "final_ema"
"""The folder of the moving average of the weights (EMA) inside a run with train.ema."""
RECIPE_NAME = "recipe.json"
"""The file that every run has and no bundle has: the resolved recipe."""


def network_folder(folder: Path, *, ema: bool = False) -> Path:
    """The folder with the network of a bundle or of a finished run. ema: the run's moving average instead.

    Raises RunError if the folder does not exist, the run is not finished or it has no moving average.
    """
    if not folder.exists():
        raise RunError(f"'{folder}' does not exist; give the folder of a finished run or of a bundle")
    is_finished = (folder / FINAL).exists()
    if (folder / RECIPE_NAME).exists() and not is_finished:
        raise RunError(f"run '{folder}' is not finished; finish it with: limbeck train RECIPE")
    if ema:
        if not has_ema(folder):
            raise RunError(
                f"run '{folder}' has no moving average of its weights; train it with train.ema, e.g. 0.9999"
            )
        return folder / FINAL_EMA
    return folder / FINAL if is_finished else folder


def has_ema(folder: Path) -> bool:
    """Whether the folder is a finished run with a moving average of its weights."""
    return (folder / FINAL_EMA).exists()
