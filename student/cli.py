"""The commands limbeck recipes, estimate, train, evaluate, report, export and study."""

import json
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

import student.study.cli
from teacher_cache.cli import OverwriteOption
from teacher_cache.errors import ClusterError

Device = Annotated[str, typer.Option(help="Device: auto (a GPU if there is one), cpu, cuda, cuda:1 ...")]
Fusion = Annotated[
    str,
    typer.Option(
        help="How the heads are combined: softmax-sum, logit-mean, class or distill. Default: the model's fusion."
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this package to the command line."""
    app.command()(recipes)
    app.command()(estimate)
    app.command()(train)
    app.command()(evaluate)
    app.command()(report)
    app.command()(export)
    student.study.cli.add_commands(app)


def recipes(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Print this recipe.", show_default=False)] = "",
    keys: Annotated[bool, typer.Option("--keys", help="List all recipe keys with type and default.")] = False,
) -> None:
    """List the bundled recipes, or print one: limbeck recipes NAME > NAME.toml"""
    from student.recipe_catalog import print_keys, print_recipes, recipe_text
    from teacher_cache.errors import RecipeError

    if name and keys:
        raise RecipeError(
            f"--keys lists the keys of all recipes and '{name}' is one recipe; give only one of them"
        )
    if name:
        print(recipe_text(name), end="")
    elif keys:
        print_keys()
    else:
        print_recipes()


def estimate(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="The TOML recipe of a cache, as for limbeck cache build.")
    ],
    student: Annotated[
        Path | None, typer.Option(metavar="RECIPE", help="The TOML recipe of a student trained from the cache.")
    ] = None,
    figures: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Measured figures of a machine (TOML, from --save); repeat it for several machines. Without it, "
            "this machine is measured.",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override one key of the cache's recipe. May be repeated."
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            min=1,
            help="Duration of the measurement, for teacher and student each, without loading. It is exceeded if "
            "three small units or two steps take longer.",
        ),
    ] = 20.0,
    workers: Annotated[int, typer.Option(min=1, help="Largest number of teacher workers to estimate.")] = 64,
    students: Annotated[int, typer.Option(min=1, help="Largest number of students that share the cost.")] = 4,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a plot (PNG).")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the estimate as JSON, in seconds.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save the figures of this machine, for --figures.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Estimate the cost of a cache before it is built: bytes, hours, workers, and when it pays off.

    Without --figures, this machine is measured: the teacher labels some images of the recipe, to temporary files.
    """
    from student.recipe import TrainRecipe
    from teacher_cache.config import load_recipe
    from teacher_cache.recipe import CacheRecipe

    cache_recipe = load_recipe(recipe, CacheRecipe, changes or ())
    student_recipe = load_recipe(student, TrainRecipe) if student else None
    # This import takes seconds: an invalid recipe is reported before it.
    from student.estimate.command import EstimateRequest, run_estimate

    run_estimate(
        EstimateRequest(cache_recipe, student_recipe, figures or [], seconds, workers, students),
        png,
        json_file,
        save,
        overwrite,
    )


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML recipe for a teacher or a student.")],
    out: Annotated[
        str | None, typer.Option(metavar="PATH", help="The run's folder. Default: runs/<name of the recipe>.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override one key, e.g. --set optim.lr=1e-3; no value (optim.clip_grad=) removes it. "
            "May be repeated.",
        ),
    ] = None,
    skip_damaged: Annotated[
        bool,
        typer.Option("--skip-damaged", help="Rename a damaged checkpoint and continue from the one before it."),
    ] = False,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="ray[=HOST:PORT]", help="Train on a Ray cluster.", show_default=False),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="With --on: number of training processes. Default: 1.")
    ] = None,
) -> None:
    """Train a teacher (one head) or a student (two heads, from a cache). Rerun it to resume.

    On several GPUs or machines: torchrun --nproc-per-node 8 --no-python limbeck train RECIPE
    """
    from student.recipe import TrainRecipe
    from teacher_cache.config import load_recipe
    from teacher_cache.distributed.ray_cluster import parse_engine, ray_session
    from teacher_cache.errors import RecipeError

    if re.match(r"\w+:/", out or ""):
        raise RecipeError(f"--out '{out}' is a URL; give a local folder, then use: limbeck export RUN URL")
    train_recipe = load_recipe(recipe, TrainRecipe, changes or ())
    folder = Path(out or f"runs/{recipe.stem}")
    if on is None:
        if processes is not None:
            raise ClusterError(
                "--processes needs --on ray; add it, or start several processes with torchrun --nproc-per-node"
            )
        from student.training.loop import train as run_training  # takes seconds

        run_training(train_recipe, folder, skip_damaged)
        return
    with ray_session(parse_engine(on)):
        from student.training.on_ray import train_on_ray  # imports Ray, which ray_session has checked

        train_on_ray(train_recipe, folder, processes=processes or 1, skip_damaged=skip_damaged)


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A bundle or the folder of a finished run.")],
    sets: Annotated[
        list[str],
        typer.Argument(
            metavar="SHARDS",
            help="Shards to evaluate: folders or index files. SHARDS@FILE.json reads the labels, one or several "
            "for each image, from a file in the folder of the index, e.g. real.json of ReaL.",
        ),
    ],
    fusion: Fusion = "",
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write a JSON line for each image: key, label and the prediction of each head.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the scores as JSON.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples for the 95 % intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Number of processes that decode images.")] = 1,
    device: Device = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Evaluate each head and their fusions, with raw and EMA weights: top-1, top-5, likelihood, calibration."""
    from student.bundle.bundle import check_fusion, open_bundle
    from student.evaluation.predict import predict_each
    from student.evaluation.scores import Bootstrap, evaluate, print_scores, write_scores
    from student.evaluation.test_set import open_test_set
    from student.training.out_of_memory import eval_oom_message, explain_out_of_memory
    from teacher_cache.distributed.device import pick_device
    from teacher_cache.errors import RecipeError
    from teacher_cache.storage.atomic import atomic_file
    from teacher_cache.storage.output import check_outputs, origin_of
    from teacher_cache.storage.store import is_remote

    if predictions and len(sets) > 1:
        raise RecipeError(f"--predictions supports one set, found {len(sets)}; evaluate them one by one")
    inputs = [one if is_remote(one) else Path(one) for one in sets]
    origin = origin_of("evaluate", model, inputs, fusion, resamples, seed)
    check_outputs({"--predictions": predictions, "--json": json_file}, origin, overwrite)
    torch_device, bootstrap = pick_device(device), Bootstrap(resamples, seed)
    bundle = open_bundle(model, torch_device)
    check_fusion(bundle.card, fusion)
    with explain_out_of_memory(lambda: eval_oom_message(torch_device, batch, "lower --batch")):
        scores = evaluate(model, sets, torch_device, batch, workers, bootstrap)
    print_scores(model, scores)
    if json_file:
        write_scores(json_file, model, scores, bootstrap, origin)
    if predictions:
        index = open_test_set(sets[0], bundle.card).index
        with atomic_file(predictions) as temporary, temporary.open("w", encoding="utf-8") as file:
            for row in predict_each(bundle, index, batch, workers, fusion):
                file.write(json.dumps({**row, "made_by": origin}) + "\n")


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Finished runs. The first is analyzed in detail.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the page and its PNGs. Default: <first run>/report.")
    ] = None,
    data: Annotated[
        str, typer.Option(metavar="SHARDS", help="The test set, as for evaluate. Default: data.val of the run.")
    ] = "",
    teacher: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run of the teacher, for the disagreement matrix.")
    ] = None,
    undistilled: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run of the same student trained without distillation.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Number of processes that decode images.")] = 1,
    device: Device = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Write a report on runs: a self-contained HTML page, report.html, and its plots as PNGs."""
    from student.evaluation.predict import EvalOptions
    from student.report.report import Baselines
    from student.report.report import report as write_report
    from student.training.out_of_memory import eval_oom_message, explain_out_of_memory
    from teacher_cache.distributed.device import pick_device

    options = EvalOptions(pick_device(device), batch, workers)
    with explain_out_of_memory(lambda: eval_oom_message(options.device, batch, "lower --batch")):
        page = write_report(
            runs, data, Baselines(teacher, undistilled), out or runs[0] / "report", options, overwrite
        )
    print(page)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or URL of the new bundle. It must not exist.")],
    fusion: Fusion = "",
    ema: Annotated[
        bool,
        typer.Option("--ema", help="Export the moving average of the weights (EMA) instead of the last weights."),
    ] = False,
    images: Annotated[
        str,
        typer.Option(metavar="SHARDS", help="Shards for the check images. Default: data.val of the recipe."),
    ] = "",
    licence: Annotated[
        str,
        typer.Option("--license", "--licence", help="License of the weights for the model card, e.g. apache-2.0."),
    ] = "",
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also write model.onnx, and compare it with torch.")
    ] = False,
) -> None:
    """Export a finished run as a bundle for serving: weights, model card, labels and check images."""
    from student.bundle.export import ExportOptions
    from student.bundle.export import export as write_bundle

    result = write_bundle(run, out, ExportOptions(fusion, ema, images, licence, onnx))
    card = result.card
    facts = f"{card.network.name}, {len(card.classes)} classes, {card.fusion}"
    if result.difference is not None:
        facts += f", ONNX within {result.difference:.1e} of torch"
    print(f"{out}: {facts}; serve it with: limbeck serve {shlex.quote(str(out))}")
