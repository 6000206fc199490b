"""limbeck recipes | estimate | train | evaluate | report | export | study ..."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

import student.study.cli
from teacher_cache.errors import ClusterError

Device = Annotated[str, typer.Option(help="Where to compute: auto (a GPU if there is one), cpu, cuda, cuda:1 ...")]
Fusion = Annotated[str, typer.Option(help="How the heads become one: softmax-sum, logit-mean, class or distill.")]


def add_commands(app: typer.Typer) -> None:
    """Put this package's commands onto the front door."""
    app.command()(recipes)
    app.command()(estimate)
    app.command()(train)
    app.command()(evaluate)
    app.command()(report)
    app.command()(export)
    student.study.cli.add_commands(app)


def recipes(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Print this one.", show_default=False)] = "",
    keys: Annotated[
        bool, typer.Option("--keys", help="Tell every key that a recipe may have, with what it takes.")
    ] = False,
) -> None:
    """List the recipes that ship with Limbeck, or print one: limbeck recipes NAME > NAME.toml"""
    from student.recipe_catalog import print_keys, print_recipes, recipe_text
    from teacher_cache.errors import RecipeError

    if name and keys:
        raise RecipeError(f"--keys tells of every recipe, and '{name}' is one; give only one of them")
    if name:
        typer.echo(recipe_text(name), nl=False)
    elif keys:
        print_keys()
    else:
        print_recipes()


def estimate(
    recipe: Annotated[Path, typer.Argument(help="A cache's TOML recipe, as for limbeck cache build.")],
    student: Annotated[
        Path | None, typer.Option(metavar="RECIPE", help="The recipe of a student who will learn from it.")
    ] = None,
    figures: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A machine's figures (TOML), as --save writes them; several by several. Without them this "
            "machine is tried.",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Override one key of the cache's recipe. May be repeated.")
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            min=1,
            help="How long to try this machine, for each of teacher and student, after loading. Nothing is begun "
            "later, but the least of it (three small units, two steps) takes what it takes.",
        ),
    ] = 20.0,
    workers: Annotated[int, typer.Option(min=1, help="The most workers to share the teacher's job out to.")] = 64,
    students: Annotated[int, typer.Option(min=1, help="The most students to share the cache's cost.")] = 4,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw it.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures as JSON, in seconds.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep what this machine's trial found, for --figures.")
    ] = None,
) -> None:
    """Say what a cache will cost before it is built: bytes, hours, workers, and when it has paid for itself.

    A trial judges some of the recipe's own images, and writes nothing but temporary files.
    """
    from student.recipe import TrainRecipe
    from teacher_cache.config import load_recipe
    from teacher_cache.recipe import CacheRecipe

    judge = load_recipe(recipe, CacheRecipe, changes or ())
    learner = load_recipe(student, TrainRecipe) if student else None
    from student.estimate.command import (  # seconds, which a wrong recipe need not wait
        EstimateRequest,
        run_estimate,
    )

    run_estimate(EstimateRequest(judge, learner, figures or [], seconds, workers, students), png, json_file, save)


def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML recipe for a teacher or a student.")],
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; runs/<name of the recipe> if not given.")
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
        bool, typer.Option("--skip-damaged", help="Set a damaged checkpoint aside; go on from the one before it.")
    ] = False,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="ray[=HOST:PORT]", help="Train on a Ray cluster.", show_default=False),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="With --on, how many train together; 1 if not given.")
    ] = None,
) -> None:
    """Train a teacher (one head) or a student (two heads, from a cache). Rerun it to go on after a stop.

    On several GPUs or machines: torchrun --nproc-per-node 8 --no-python limbeck train RECIPE
    """
    from student.recipe import TrainRecipe
    from teacher_cache.config import load_recipe
    from teacher_cache.distributed.ray_cluster import parse_engine, ray_session
    from teacher_cache.errors import RecipeError

    if re.match(r"\w+:/", str(out)):
        raise RecipeError(f"--out '{out}': a run's folder is on this machine; give a path, and export to a URL")
    chosen, folder = load_recipe(recipe, TrainRecipe, changes or ()), out or Path("runs") / recipe.stem
    if on is None:
        if processes is not None:
            raise ClusterError("--processes belongs to --on ray; without it, torchrun says how many")
        from student.training.loop import train as run_training  # seconds, which a wrong recipe need not wait

        run_training(chosen, folder, skip_damaged)
        return
    with ray_session(parse_engine(on)):
        from student.training.on_ray import train_on_ray  # needs Ray, which `joined` has found

        train_on_ray(chosen, folder, processes=processes or 1, skip_damaged=skip_damaged)


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A bundle, or the folder of a finished run.")],
    sets: Annotated[
        list[str],
        typer.Argument(
            metavar="SHARDS...",
            help="Shards to measure on: their folders or index files. SHARDS@FILE.json takes the labels, one or "
            "several for each image, from a file beside the index (ReaL's real.json, say).",
        ),
    ],
    fusion: Fusion = "",
    predictions: Annotated[
        Path | None,
        typer.Option(help="Also write a JSON line for each image: key, label, and what each head says."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures as JSON.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples behind the 95 % intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Names the bootstrap's resamples.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 1,
    device: Device = "auto",
) -> None:
    """Measure each head and their fusions, raw and EMA: top-1, top-5, likelihood, calibration."""
    from student.bundle.bundle import check_fusion, open_bundle
    from student.evaluation.predict import predict_each
    from student.evaluation.scores import Bootstrap, evaluate, print_scores, write_scores
    from student.evaluation.test_set import open_test_set
    from student.training.out_of_memory import enough_memory, too_many_images
    from teacher_cache.distributed.device import pick_device
    from teacher_cache.errors import RecipeError
    from teacher_cache.storage.atomic import atomic_file

    for option, path in (("--predictions", predictions), ("--json", json_file)):
        if path and not path.parent.is_dir():
            raise RecipeError(f"{option} '{path}': there is no folder '{path.parent}'; make it")
    if predictions and len(sets) > 1:
        raise RecipeError(f"--predictions is of one set, and {len(sets)} are given; evaluate them one by one")
    where, bootstrap = pick_device(device), Bootstrap(resamples, seed)
    bundle = open_bundle(model, where)
    check_fusion(bundle.card, fusion)
    with enough_memory(lambda: too_many_images(where, batch, "lower --batch")):
        scores = evaluate(model, sets, where, batch, workers, bootstrap)
    print_scores(model, scores)
    if json_file:
        write_scores(json_file, model, scores, bootstrap)
    if predictions:
        index = open_test_set(sets[0], bundle.card).index
        with atomic_file(predictions) as temporary, temporary.open("w") as file:
            for row in predict_each(bundle, index, batch, workers, fusion):
                file.write(json.dumps(row) + "\n")


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished runs; the first is looked into.")],
    out: Annotated[
        Path | None, typer.Option(help="The folder of the page and its PNGs; <first run>/report if not given.")
    ] = None,
    data: Annotated[
        str, typer.Option(metavar="SHARDS", help="The test set, as for evaluate; the run's data.val if not given.")
    ] = "",
    teacher: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The teacher's run, for the disagreement matrix.")
    ] = None,
    undistilled: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The same student trained without distillation.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 1,
    device: Device = "auto",
) -> None:
    """Show what runs have learned on one self-contained HTML page: report.html, and its pictures as PNGs."""
    from student.evaluation.predict import EvalOptions
    from student.report.report import Baselines
    from student.report.report import report as write_report
    from student.training.out_of_memory import enough_memory, too_many_images
    from teacher_cache.distributed.device import pick_device

    machine = EvalOptions(pick_device(device), batch, workers)
    with enough_memory(lambda: too_many_images(machine.device, batch, "lower --batch")):
        page = write_report(runs, data, Baselines(teacher, undistilled), out or runs[0] / "report", machine)
    typer.echo(page)


def export(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    out: Annotated[str, typer.Argument(help="The bundle's folder or URL; must not be there yet.")],
    fusion: Fusion = "",
    ema: Annotated[bool, typer.Option("--ema", help="The weights' moving average, not the last ones.")] = False,
    images: Annotated[
        str,
        typer.Option(metavar="SHARDS", help="Where the check images come from, if not the recipe's data.val."),
    ] = "",
    licence: Annotated[str, typer.Option(help="Of the weights, for the model card: apache-2.0 ...")] = "",
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write model.onnx, checked against torch.")] = False,
) -> None:
    """Write a finished run as a bundle: weights, model card, labels, check images, ready to serve."""
    from student.bundle.export import Options
    from student.bundle.export import export as write_bundle

    made = write_bundle(run, out, Options(fusion, ema, images, licence, onnx))
    card = made.card
    facts = f"{card.network.name}, {len(card.classes)} classes, {card.fusion}"
    if made.difference is not None:
        facts += f", ONNX within {made.difference:.1e} of torch"
    typer.echo(f"{out}: {facts}; serve it with: limbeck serve {out}")
