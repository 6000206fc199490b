"""limbeck study seeds | compare | ablate | resolution | status"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from teacher_cache.distributed.world import World

MOST_PIXELS = 4096

Recipe = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A TOML recipe for a teacher or a student.", show_default=False)
]
Seeds = Annotated[int, typer.Option(min=1, help="Train under the seeds 0 to this less one.")]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="The study's folder; studies/<study>_<name> if not given.", show_default=False
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one key in each recipe; no value (KEY=) removes it. May be repeated.",
    ),
]
Rank = Annotated[
    int | None, typer.Option(min=0, help="Which of --world jobs this is, from 0.", show_default=False)
]
WorldSize = Annotated[int | None, typer.Option(min=1, help="How many jobs share the runs.", show_default=False)]
Head = Annotated[
    str,
    typer.Option(
        help="Whose accuracy counts: class, distill or joint, or with train.ema class-ema, distill-ema or "
        "joint-ema; joint of two heads if not given."
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Put the group onto the front door."""
    study = typer.Typer(
        no_args_is_help=True,
        help="Ask many runs one question. A study is a folder: the same command goes on after a stop, and any "
        "number of jobs may work on it.",
    )
    for command in (seeds, compare, ablate, resolution, status):
        study.command()(command)
    app.add_typer(study, name="study")


def seeds(
    recipe: Recipe,
    count: Annotated[int, typer.Option("--seeds", min=1, help="Train under the seeds 0 to this less one.")] = 10,
    out: Out = None,
    changes: Changes = None,
    rank: Rank = None,
    world: WorldSize = None,
    head: Head = "",
) -> None:
    """How much of a result is the seed's: mean, spread, histogram, and the spread along the epochs."""
    from student.recipe import TrainRecipe
    from teacher_cache.config import load_recipe

    folder, found = out or _folder("seeds", recipe.stem), load_recipe(recipe, TrainRecipe, changes or ())
    from student.study.seeds import study_seeds  # seconds, which a wrong recipe need not wait

    _show(folder, study_seeds(found, recipe.stem, count, folder, head, _world(rank, world)))


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A recipe.", show_default=False)],
    second: Annotated[
        Path, typer.Argument(metavar="B", help="The recipe that is held against it.", show_default=False)
    ],
    seeds: Seeds = 5,
    out: Out = None,
    changes: Changes = None,
    tell: Annotated[
        list[float] | None,
        typer.Option(
            min=1e-6, help="Say how many runs would tell a difference of so many points. May be repeated."
        ),
    ] = None,
    rank: Rank = None,
    world: WorldSize = None,
    head: Head = "",
) -> None:
    """Whether two recipes differ by more than their seeds do."""
    from student.recipe import TrainRecipe
    from teacher_cache.config import load_recipe

    names = (first.stem, second.stem) if first.stem != second.stem else (str(first), str(second))
    folder = out or _folder("compare", f"{first.stem}_{second.stem}")
    recipes = [
        (name, load_recipe(path, TrainRecipe, changes or ()))
        for name, path in zip(names, (first, second), strict=True)
    ]
    from student.study.compare import DETECT, study_compare  # seconds, which a wrong recipe need not wait

    found = study_compare(recipes, seeds, folder, tell or DETECT, head, _world(rank, world))
    _show(folder, *(found or (None,)))


def ablate(
    recipe: Recipe,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="An ingredient to change alone, e.g. --set views.mixup=0; keys that belong together stand "
            "in one, with ';' between: --set 'optim.name=sgd; optim.lr=0.1'; no value removes a key: "
            "--set 'loss.criterion=cross-entropy; loss.bce_targets='. May be repeated.",
        ),
    ] = None,
    seeds: Seeds = 3,
    out: Out = None,
    rank: Rank = None,
    world: WorldSize = None,
    head: Head = "",
) -> None:
    """Each ingredient of a recipe changed alone, the effects in order, with the noise beside them."""
    from student.study.ablate import study_ablate

    folder = out or _folder("ablate", recipe.stem)
    _show(folder, study_ablate(recipe, changes or (), seeds, folder, head, _world(rank, world)))


def resolution(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run, or a bundle.", show_default=False)],
    on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SHARDS",
            help="A test set, e.g. --on val=shards/val --on v2=shards/v2 --on real=shards/val@real.json; the "
            "others are held against the first. The recipe's data.val if not given. May be repeated.",
        ),
    ] = None,
    sizes: Annotated[
        str,
        typer.Option(help="Test sizes in pixels, e.g. 128,160,192,224; seven around the run's own if not given."),
    ] = "",
    crops: Annotated[
        str, typer.Option(help="Crop ratios, e.g. 0.875,1.0; 0.875, 0.95 and 1.0 if not given.")
    ] = "",
    out: Out = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    rank: Rank = None,
    world: WorldSize = None,
    head: Head = "",
) -> None:
    """Accuracy over test sizes and crop ratios, on several test sets, with the gap between them."""
    from student.study.resolution import Machine, study_resolution
    from student.training.out_of_memory import eval_oom_message, explain_out_of_memory

    folder, machine = out or _folder("resolution", run.name), Machine(batch, workers, device)
    sides = tuple(int(size) for size in _numbers("--sizes", sizes, int))
    ratios = _numbers("--crops", crops, float)
    with explain_out_of_memory(lambda: eval_oom_message(device, batch, "lower --batch")):
        found = study_resolution(run, _sets(on or []), sides, ratios, folder, machine, head, _world(rank, world))
    _show(folder, *(found or (None,)))


def status(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A study's folder.", show_default=False)],
) -> None:
    """Say what a study has done, and what is still to run."""
    from rich.console import Console

    from student.study.folder import open_study, status_of

    table, line = status_of(open_study(folder))
    if table.rows:
        Console().print(table)
    typer.echo(line)


def _folder(kind: str, name: str) -> Path:
    return Path("studies") / f"{kind}_{name}"


def _world(rank: int | None, size: int | None) -> "World | None":
    """This job's share of the runs. Each run is one process's own, even where torchrun began several."""
    from teacher_cache.distributed.world import find_world

    found = find_world(rank, size)
    os.environ.pop("MASTER_ADDR", None)
    return found


def _show(folder: Path, *parts: object) -> None:
    from rich.console import Console

    from teacher_cache.console import log_line

    if parts[0] is None:
        return
    for part in parts:
        Console(highlight=False).print(part, soft_wrap=isinstance(part, str), markup=not isinstance(part, str))
    log_line(f"numbers: {folder / 'report.json'}; picture: {folder / 'report.png'}")


def _sets(places: list[str]) -> dict[str, str]:
    from teacher_cache.errors import RecipeError

    sets: dict[str, str] = {}
    for place in places:
        name, equals, shards = place.partition("=")
        if not (name and equals and shards) or "/" in name:
            raise RecipeError(f"--on '{place}' is not NAME=SHARDS, e.g. --on v2=shards/v2")
        if name in sets:
            raise RecipeError(f"--on '{place}': the name '{name}' stands twice; give each set its own")
        sets[name] = shards
    return sets


def _numbers(option: str, text: str, kind: type[int] | type[float]) -> tuple[float, ...]:
    from teacher_cache.errors import RecipeError

    try:
        numbers = tuple(kind(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise RecipeError(
            f"{option} '{text}' are not numbers with commas between; e.g. 0.875,1.0 or 192,224"
        ) from None
    most, meant = (1, "shares of an image") if kind is float else (MOST_PIXELS, "pixels")
    if wrong := [number for number in numbers if not 0 < number <= most]:
        raise RecipeError(f"{option} {wrong[0]}: give {meant}, above 0 and at most {most}")
    return numbers
