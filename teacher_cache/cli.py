"""The commands limbeck cache (build, extend, status, verify, show); those of shards are in shards_cli.py."""

from pathlib import Path
from typing import Annotated

import typer

from teacher_cache import shards_cli
from teacher_cache.errors import ClusterError

CacheArgument = Annotated[
    str, typer.Argument(metavar="CACHE", help="Folder or URL of the cache.", show_default=False)
]
RecipesArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="RECIPE",
        help="One or more TOML recipes with the tables data, views, teacher and cache.",
        show_default=False,
    ),
]
ChangesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a recipe key, e.g. --set cache.seeds=30. An empty value (cache.k=) removes the key. May be "
        "repeated.",
    ),
]
RankOption = Annotated[
    int | None, typer.Option(min=0, help="Index of this job, from 0 to --world minus 1.", show_default=False)
]
WorldOption = Annotated[
    int | None, typer.Option(min=1, help="Number of jobs that share the work.", show_default=False)
]
CheckOption = Annotated[
    bool,
    typer.Option(
        "--check/--no-check",
        help="First verify the checksums of the existing units in this job's share, and rebuild the damaged ones.",
    ),
]
OnOption = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="ray[=HOST:PORT]",
        help="Run on a Ray cluster: the one at HOST:PORT, else the one at RAY_ADDRESS, else a local one.",
        show_default=False,
    ),
]
ActorsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Maximum number of Ray actors (needs --on). If omitted, as many as fit on the nodes.",
        show_default=False,
    ),
]
ShardsOption = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Folder, index or URL of the shards. If omitted, the path in the cache's recipe.",
        show_default=False,
    ),
]
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace existing files. Without it, only files that this command wrote from the same inputs are "
        "replaced.",
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this package on the top-level app."""
    shards_cli.add_commands(app)
    cache = typer.Typer(no_args_is_help=True, help="Build, check and inspect a cache of teacher targets.")
    cache.command()(build)
    cache.command()(extend)
    cache.command()(status)
    cache.command()(verify)
    cache.command()(show)
    app.add_typer(cache, name="cache")


def build(
    recipes: RecipesArgument,
    changes: ChangesOption = None,
    rank: RankOption = None,
    world: WorldOption = None,
    check: CheckOption = True,
    on: OnOption = None,
    actors: ActorsOption = None,
) -> None:
    """Run the teacher on seeded views of every image and store its targets. An interrupted build continues.

    With several recipes that have the same shards, views and seeds, each image is decoded once for all caches.
    Several jobs may build the same cache; each skips the units that exist. --rank and --world give each job its
    own share; by default they are read from the environment of torchrun, SLURM or Kubernetes.
    """
    _build(recipes, changes, rank, world, check, on, actors, extend=False)


def extend(
    recipes: RecipesArgument,
    changes: ChangesOption = None,
    rank: RankOption = None,
    world: WorldOption = None,
    check: CheckOption = True,
    on: OnOption = None,
    actors: ActorsOption = None,
) -> None:
    """Add seeds to a cache. Like build, but cache.seeds may be larger than before, e.g. --set cache.seeds=60."""
    _build(recipes, changes, rank, world, check, on, actors, extend=True)


def _build(
    paths: list[Path],
    changes: list[str] | None,
    rank: int | None,
    world: int | None,
    check: bool,
    on: str | None,
    actors: int | None,
    *,
    extend: bool,
) -> None:
    from teacher_cache.config import load_recipe
    from teacher_cache.distributed.ray_cluster import parse_engine, ray_session
    from teacher_cache.recipe import CacheRecipe

    if on is None and actors is not None:
        raise ClusterError("--actors needs --on ray; set both or neither")
    recipes = [load_recipe(path, CacheRecipe, changes or ()) for path in paths]
    if on is None:
        from teacher_cache.distributed.world import find_world
        from teacher_cache.labeling.job import build_all  # slow to import, so only after the recipes are checked

        build_all(recipes, find_world(rank, world), extend=extend, check=check)
        return
    if rank is not None or world is not None:
        raise ClusterError("--on ray assigns the units itself; remove --rank and --world")
    with ray_session(parse_engine(on)):
        from teacher_cache.labeling.on_ray import (
            build_on_ray,
        )  # imports Ray; ray_session has checked that it is installed

        build_on_ray(recipes, actors=actors, extend=extend, check=check)


def status(cache: CacheArgument) -> None:
    """Show what a cache contains, which units are missing, and which teacher it is from."""
    from rich.console import Console

    from teacher_cache.cache.status import status_table
    from teacher_cache.cache.target_cache import TargetCache

    Console().print(status_table(TargetCache.open(cache)))


def verify(
    cache: CacheArgument,
    replay: Annotated[
        int, typer.Option(min=0, help="Also render this many random views again and compare their digests.")
    ] = 0,
    teacher: Annotated[
        bool,
        typer.Option(
            "--teacher", help="Also run the recipe's teacher on the replayed views and compare its targets."
        ),
    ] = False,
    shards: ShardsOption = None,
    seed: Annotated[int, typer.Option(help="Seed that selects the replayed views.")] = 0,
) -> None:
    """Verify the checksums of a cache and, with --replay, the digests of some views."""
    from teacher_cache.cache.verify import verify as verify_cache
    from teacher_cache.errors import RecipeError

    if shards and not replay:
        raise RecipeError(f"--shards '{shards}' is read by --replay only; add --replay COUNT or omit --shards")
    verify_cache(cache, replay=replay, teacher=teacher, shards=shards, seed=seed)


def show(
    cache: CacheArgument,
    seed: Annotated[int, typer.Option(min=0, help="Augmentation seed.")] = 0,
    shard: Annotated[int, typer.Option(min=0, help="Index of the shard.")] = 0,
    rows: Annotated[int, typer.Option(min=1, max=64, help="Number of images, from the start of the shard.")] = 8,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Output image.")] = Path("sheet.png"),
    shards: ShardsOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Draw a contact sheet: image, view, mixed view, label and teacher targets of each row."""
    from teacher_cache.cache.contact_sheet import draw_sheet

    draw_sheet(cache, seed, shard, rows, out, shards, overwrite)
