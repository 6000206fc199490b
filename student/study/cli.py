"""limbeck study seeds | compare | ablate | resolution | status"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from teacher_cache.distributed.world import World

MAX_PIXELS = 4096

Recipe = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A TOML recipe for a teacher or a student.", show_default=False)
]
Seeds = Annotated[int, typer.Option(min=1, help="Number of seeds (0 to N-1).", metavar="N")]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Folder of the study; default: studies/<study>_<name>.", show_default=False
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one key in each recipe; KEY= removes it. May be repeated.",
    ),
]
Rank = Annotated[
    int | None, typer.Option(min=0, help="Number of this job, from 0 to --world minus 1.", show_default=False)
]
WorldSize = Annotated[
    int | None, typer.Option(min=1, help="Number of jobs that share the runs.", show_default=False)
]
Head = Annotated[
    str,
    typer.Option(
        help="Head whose accuracy is used: class, distill or joint; with train.ema also class-ema, distill-ema or "
        "joint-ema. Default: joint, or class if there is only one head."
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Add `limbeck study` to the command line."""
    study = typer.Typer(
        no_args_is_help=True,
        help="Answer one question with many runs. A study is a folder: the same command resumes it, and several "
        "jobs can share its runs.",
    )
    for command in (seeds, compare, ablate, resolution, status):
        study.command()(command)
    app.add_typer(study, name="study")


def seeds(
    recipe: Recipe,
    count: Annotated[int, typer.Option("--seeds", min=1, help="Number of seeds (0 to N-1).", metavar="N")] = 10,
    out: Out = None,
    changes: Changes = None,
    rank: Rank = None,
    world: WorldSize = None,
    head: Head = "",
) -> None:
    """Measure how much a result depends on the seed: mean, spread, histogram, and spread by epoch."""
    from student.recipe import TrainRecipe
    from teacher_cache.config import load_recipe

    folder, chosen = out or _folder("seeds", recipe.stem), load_recipe(recipe, TrainRecipe, changes or ())
    from student.study.seeds import study_seeds  # takes seconds; recipe errors come first

    _show(folder, study_seeds(chosen, recipe.stem, count, folder, head, _world(rank, world)))


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A recipe.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="B", help="The recipe to compare with A.", show_default=False)],
    seeds: Seeds = 5,
    out: Out = None,
    changes: Changes = None,
    detect: Annotated[
        list[float] | None,
        typer.Option(
            min=1e-6,
            metavar="POINTS",
            help="Show how many runs would detect a difference of this size. May be repeated.",
        ),
    ] = None,
    tell: Annotated[list[float] | None, typer.Option(min=1e-6, hidden=True)] = None,
    rank: Rank = None,
    world: WorldSize = None,
    head: Head = "",
) -> None:
    """Test whether two recipes differ by more than their seeds explain."""
    from student.recipe import TrainRecipe
    from teacher_cache.config import load_recipe
    from teacher_cache.console import log_line
    from teacher_cache.errors import RecipeError

    if tell:  # the option's name in 0.1
        if detect:
            raise RecipeError("--tell is the old name of --detect; give only --detect")
        log_line("--tell is the old name of --detect and will be removed in 0.3; use --detect")
        detect = tell
    names = (first.stem, second.stem) if first.stem != second.stem else (str(first), str(second))
    folder = out or _folder("compare", f"{first.stem}_{second.stem}")
    recipes = [
        (name, load_recipe(path, TrainRecipe, changes or ()))
        for name, path in zip(names, (first, second), strict=True)
    ]
    from student.study.compare import DETECT, study_compare  # takes seconds; recipe errors come first

    result = study_compare(recipes, seeds, folder, detect or DETECT, head, _world(rank, world))
    _show(folder, *(result or (None,)))


def ablate(
    recipe: Recipe,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="One change to test, e.g. --set views.mixup=0. Join keys that belong together with ';': "
            "--set 'optim.name=sgd; optim.lr=0.1'. KEY= removes a key: "
            "--set 'loss.criterion=cross-entropy; loss.bce_targets='. May be repeated.",
        ),
    ] = None,
    seeds: Seeds = 3,
    out: Out = None,
    rank: Rank = None,
    world: WorldSize = None,
    head: Head = "",
) -> None:
    """Test each change of a recipe alone, and compare its effect with the noise of the seeds."""
    from student.study.ablate import study_ablate

    folder = out or _folder("ablate", recipe.stem)
    _show(folder, study_ablate(recipe, changes or (), seeds, folder, head, _world(rank, world)))


def resolution(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run, or a bundle.", show_default=False)],
    on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SHARDS",
            help="A test set, e.g. --on val=shards/val --on v2=shards/v2 --on real=shards/val@real.json. The "
            "others are compared with the first. Default: the recipe's data.val. May be repeated.",
        ),
    ] = None,
    sizes: Annotated[
        str,
        typer.Option(help="Test sizes in pixels, e.g. 128,160,192,224. Default: seven around the run's own size."),
    ] = "",
    crops: Annotated[str, typer.Option(help="Crop ratios, e.g. 0.875,1.0. Default: 0.875,0.95,1.0.")] = "",
    out: Out = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 1,
    device: Annotated[
        str, typer.Option(help="Device: auto (a GPU if there is one), cpu, cuda, cuda:1, ...")
    ] = "auto",
    rank: Rank = None,
    world: WorldSize = None,
    head: Head = "",
) -> None:
    """Measure accuracy at several test sizes and crop ratios, on several test sets, and the gaps between sets."""
    from student.evaluation.predict import EvalOptions
    from student.study.resolution import study_resolution
    from student.training.out_of_memory import eval_oom_message, explain_out_of_memory
    from teacher_cache.distributed.device import pick_device

    folder, options = out or _folder("resolution", run.name), EvalOptions(pick_device(device), batch, workers)
    image_sizes = tuple(int(size) for size in _numbers("--sizes", sizes, int))
    ratios = _numbers("--crops", crops, float)
    with explain_out_of_memory(lambda: eval_oom_message(options.device, batch, "lower --batch")):
        result = study_resolution(
            run, _sets(on or []), image_sizes, ratios, folder, options, head, _world(rank, world)
        )
    _show(folder, *(result or (None,)))


def status(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A study's folder.", show_default=False)],
) -> None:
    """Show which runs of a study are done, and which are not."""
    from rich.console import Console

    from student.study.folder import open_study, status_of

    table, line = status_of(open_study(folder))
    if table.rows:
        Console().print(table)
    print(line)


def _folder(kind: str, name: str) -> Path:
    return Path("studies") / f"{kind}_{name}"


def _world(rank: int | None, size: int | None) -> "World | None":
    """This job's share of the runs. Each run uses one process, even if torchrun started several."""
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
    log_line(f"results: {folder / 'report.json'}; plot: {folder / 'report.png'}")


def _sets(options: list[str]) -> dict[str, str]:
    from teacher_cache.errors import RecipeError

    sets: dict[str, str] = {}
    for option in options:
        name, equals, shards = option.partition("=")
        if not (name and equals and shards) or "/" in name:
            raise RecipeError(f"--on '{option}' is not NAME=SHARDS; give e.g. --on v2=shards/v2")
        if name in sets:
            raise RecipeError(f"--on '{option}': the name '{name}' is used twice; give each set another name")
        sets[name] = shards
    return sets


def _numbers(option: str, text: str, number_type: type[int] | type[float]) -> tuple[float, ...]:
    from teacher_cache.errors import RecipeError

    try:
        numbers = tuple(number_type(word) for word in text.split(",")) if text else ()
    except ValueError:
        raise RecipeError(
            f"{option} '{text}' is not a list of numbers; separate them with commas, e.g. 0.875,1.0 or 192,224"
        ) from None
    limit, unit = (1, "a share of the image") if number_type is float else (MAX_PIXELS, "pixels")
    if invalid := [number for number in numbers if not 0 < number <= limit]:
        raise RecipeError(f"{option} {invalid[0]}: give {unit} above 0 and at most {limit}")
    return numbers
