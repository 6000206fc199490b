"""File names in a run folder: final weights and where to find a trained network."""

from pathlib import Path

from teacher_cache.errors import RunError

FINAL = "final"
"""The folder inside a run that holds the finished network."""


def network_folder(run: Path) -> Path:
    """The folder that holds the network of a finished run, or of a bundle."""
    return run / FINAL if (run / FINAL).exists() else run


FINAL_EMA = "final_ema"
"""The folder inside a run that holds the moving average of the finished network's weights."""


def finished(folder: Path) -> Path:
    """The folder that holds the network: a bundle itself, or what a finished run left in it."""
    if not folder.exists():
        raise RunError(f"no run and no bundle at '{folder}'; check the path")
    if (folder / "recipe.json").exists() and not (folder / FINAL).exists():
        raise RunError(f"run '{folder}' is not finished; finish it with: limbeck train RECIPE")
    return folder / FINAL if (folder / FINAL).exists() else folder
