"""The commands limbeck pack, index and cache (build, extend, status, verify, show)."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from teacher_cache.errors import ClusterError

ClassesOption = Annotated[
    Path | None,
    typer.Option(
        "--classes",
        metavar="FILE",
        help="Text file with one class name per line; the first line is class 0.",
    ),
]

CacheArgument = Annotated[
    str, typer.Argument(metavar="CACHE", help="Folder or URL of the cache.", show_default=False)
]
SourceArgument = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE",
        help="Folder with one subfolder of images per class, a .zip or .tar (or .tar.gz, .bz2, .xz) of such a "
        "folder, or a folder of MNIST-style IDX files.",
        show_default=False,
    ),
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
    app.command()(pack)
    app.command()(index)
    cache = typer.Typer(no_args_is_help=True, help="Build, check and inspect a cache of teacher targets.")
    cache.command()(build)
    cache.command()(extend)
    cache.command()(status)
    cache.command()(verify)
    cache.command()(show)
    app.add_typer(cache, name="cache")


def pack(
    source: SourceArgument,
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="Output folder or URL; created if it does not exist.", show_default=False
        ),
    ],
    split: Annotated[
        str,
        typer.Option(
            help="Subfolder of SOURCE with the class folders, e.g. train. For IDX files: train or test.",
            show_default=False,
        ),
    ] = "",
    classes: ClassesOption = None,
    numeric: Annotated[
        bool,
        typer.Option(
            "--numeric",
            help="Sort the class folders by the numbers in their names (2 before 10), as timm does. By default, "
            "they are sorted as text.",
        ),
    ] = False,
    sidecar: Annotated[
        Literal["json"] | None,
        typer.Option(
            help="Add the fields of the JSON object in 1.json or 1.jpg.json to the metadata of image 1.jpg.",
            show_default=False,
        ),
    ] = None,
    shard_rows: Annotated[int, typer.Option(min=1, help="Maximum images per shard.")] = 1000,
    size: Annotated[
        int,
        typer.Option(
            min=0,
            help="Shrink images whose short side is longer than this many pixels, and save them in their own "
            "format with quality 95. This makes all later steps faster. 0 copies every file unchanged.",
        ),
    ] = 0,
    limit: Annotated[
        int, typer.Option(min=0, help="Pack only this many images, drawn at random, for a test. 0 packs all.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the shuffle.")] = 0,
    skip_broken: Annotated[
        bool,
        typer.Option(
            "--skip-broken",
            help="Skip images that cannot be decoded and list them, with the reason, in OUT/broken.txt. By "
            "default, the first one stops the command.",
        ),
    ] = False,
) -> None:
    """Pack images into shuffled WebDataset shards and write an index.

    Every image is decoded once to check it. An interrupted pack continues when you run the same command again.
    """
    from teacher_cache.class_file import read_class_names
    from teacher_cache.packing.pack import pack as pack_images

    pack_images(
        source,
        out,
        split=split,
        shard_rows=shard_rows,
        size=size,
        limit=limit,
        seed=seed,
        skip_broken=skip_broken,
        classes=read_class_names(classes),
        numeric=numeric,
        sidecar=sidecar or "",
    )


def index(
    shards: Annotated[
        list[str],
        typer.Argument(
            metavar="SHARDS",
            help=".tar files, folders or s3://bucket/prefix URLs with .tar files, or paths and URLs with braces, "
            "e.g. 'https://host/train-{0000..1023}.tar'. Paths may also have wildcards.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Path of the index, or a folder or URL in which to write index.json. Required for http(s) "
            "shards. If omitted, index.json in the folder of the shards.",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Text file with one class name per line (the first is class 0), or another set's index (.json).",
            show_default=False,
        ),
    ] = None,
    skip_broken: Annotated[
        bool,
        typer.Option(
            "--skip-broken",
            help="Decode every image; leave out broken images and samples without a label, and list them.",
        ),
    ] = False,
    key_prefix: Annotated[
        Literal["shard"] | None,
        typer.Option(
            help="Put the name of the shard before each key. For keys that begin again in every shard.",
            show_default=False,
        ),
    ] = None,
    dotted_keys: Annotated[
        bool,
        typer.Option(
            "--dotted-keys",
            help="Keys contain dots: a suffix begins at the last dot of a file name, not at the first.",
        ),
    ] = False,
    label: Annotated[
        str,
        typer.Option(
            metavar="SUFFIX",
            help="Suffix of the file with a sample's class number or name, or json:FIELD for the .json file.",
        ),
    ] = "cls",
) -> None:
    """Index existing WebDataset shards: their rows, checksums and classes.

    Every sample must have an image (.jpg, .png, ...) and a .cls file with its class number. Both are checked.
    An existing index of the same shards is replaced; its class names are kept. An index of other shards is not.
    """
    from teacher_cache.class_file import read_class_names
    from teacher_cache.data.index import SampleFormat, load_index
    from teacher_cache.data.indexing import IndexOptions
    from teacher_cache.packing.index_file import index_patterns

    if classes and classes.endswith(".json"):
        names = load_index(classes).classes
    else:
        names = read_class_names(Path(classes) if classes else None)
    sample_format = SampleFormat(key_prefix or "", dotted_keys, label.removeprefix("."))
    index_patterns(shards, out, IndexOptions(names, sample_format, skip_broken))


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
