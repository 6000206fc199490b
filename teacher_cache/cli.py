"""limbeck pack | index | cache build, extend, status, verify, show"""

from pathlib import Path
from typing import Annotated

import typer

from teacher_cache.errors import ClusterError, ShardError

ClassesOption = Annotated[
    Path | None,
    typer.Option(
        "--classes",
        metavar="FILE",
        help="A text file with one class name a line; the first line names label 0.",
    ),
]

CacheArgument = Annotated[
    str, typer.Argument(metavar="CACHE", help="The cache's folder or URL.", show_default=False)
]
RecipesArgument = Annotated[
    list[Path],
    typer.Argument(metavar="RECIPE...", help="TOML recipes: shards, views, teacher, cache.", show_default=False),
]
ChangesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one key, e.g. --set cache.seeds=30; no value (cache.k=) removes it. May be repeated.",
    ),
]
RankOption = Annotated[
    int | None, typer.Option(min=0, help="Which of --world jobs this is, from 0.", show_default=False)
]
WorldOption = Annotated[int | None, typer.Option(min=1, help="How many jobs share the work.", show_default=False)]
CheckOption = Annotated[
    bool,
    typer.Option(
        "--check/--no-check",
        help="First compare the units of this job's share that are there with their checksums, and build anew "
        "those that are damaged.",
    ),
]
OnOption = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="ray[=HOST:PORT]",
        help="Give the units out to actors in a Ray cluster: the one at this address, else at RAY_ADDRESS, else "
        "this machine's own.",
        show_default=False,
    ),
]
ActorsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="With --on, at most so many actors; if not given, all that the nodes hold.",
        show_default=False,
    ),
]
ShardsOption = Annotated[
    str | None,
    typer.Option(
        metavar="PATH", help="Where the shards lie, if not where the cache's recipe says.", show_default=False
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this package on the top-level app."""
    app.command()(pack)
    app.command()(index)
    cache = typer.Typer(no_args_is_help=True, help="Let a teacher label seeded views of every image, once.")
    cache.command()(build)
    cache.command()(extend)
    cache.command()(status)
    cache.command()(verify)
    cache.command()(show)
    app.add_typer(cache, name="cache")


def pack(
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder with one folder of images per class, a .zip / .tar / .tar.gz / .tgz of such a folder, "
            "or a folder of MNIST-style IDX files.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str,
        typer.Argument(help="The folder or URL for the shards; made where it is not there.", show_default=False),
    ],
    split: Annotated[
        str,
        typer.Option(
            help="Which subfolder of SOURCE holds the class folders, e.g. train; for IDX files, train or test.",
            show_default=False,
        ),
    ] = "",
    classes: ClassesOption = None,
    shard_rows: Annotated[int, typer.Option(min=1, help="The most images that one shard holds.")] = 1000,
    size: Annotated[
        int,
        typer.Option(
            min=0,
            help="Shrink images whose short side has more pixels than this (JPEG quality 95), which makes every "
            "later step faster. 0 keeps every file byte for byte.",
        ),
    ] = 0,
    limit: Annotated[
        int, typer.Option(min=0, help="Pack only this many images, drawn at random, for a trial. 0 packs all.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Another seed shuffles the images into another order.")] = 0,
    skip_broken: Annotated[
        bool,
        typer.Option(
            "--skip-broken",
            help="Leave out images that cannot be decoded, and list them with the reason in OUT/broken.txt, "
            "instead of stopping at the first.",
        ),
    ] = False,
) -> None:
    """Pack images into WebDataset shards, shuffled, with an index.

    Every image is decoded once, as a check. A pack that was stopped goes on when the same command is run again.
    """
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
        classes=_read_names(classes),
    )


def index(
    shards: Annotated[
        list[str],
        typer.Argument(
            help="Folders of .tar files (s3://bucket/prefix too), .tar files, or paths and URLs with braces: "
            "'https://host/train-{0000..1023}.tar'.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The index, or a folder (or URL) to write an index.json into; needed for http(s). "
            "[default: index.json in the folder of the shards]",
        ),
    ] = None,
    classes: ClassesOption = None,
) -> None:
    """Index WebDataset shards that exist already: their rows, checksums and classes.

    Where there is an index already it is made anew, and its classes keep their names.
    Every sample needs an image (.jpg, .png ...) and a .cls file with its class number; both are checked.
    """
    from teacher_cache.console import count_of, log_line
    from teacher_cache.data.index import INDEX_NAME, save_index
    from teacher_cache.data.indexing import expand_shards, index_shards

    urls = expand_shards(shards)
    folders = {out} if out else {url.rpartition("/")[0] or "." for url in urls}
    if not out and (len(folders) > 1 or urls[0].startswith(("http:", "https:"))):
        raise ShardError(f"where should the index of '{urls[0]}' lie? Name a file with --out FILE")
    path = folders.pop().rstrip("/")
    path = path if path.endswith(".json") else f"{path}/{INDEX_NAME}"
    names = _read_names(classes) or _names_there(path)
    made = index_shards(urls, path.rpartition("/")[0] or ".", names)
    save_index(made, path)
    hint = "" if names else "; classes bear their numbers, --classes FILE names them"
    log_line(
        f"indexed {count_of(made.rows, 'image')} of {len(made.classes)} classes "
        f"in {count_of(len(made.shards), 'shard')} in {path}{hint}"
    )


def build(
    recipes: RecipesArgument,
    changes: ChangesOption = None,
    rank: RankOption = None,
    world: WorldOption = None,
    check: CheckOption = True,
    on: OnOption = None,
    actors: ActorsOption = None,
) -> None:
    """Run the teacher over the views of every image and keep what it says; goes on where it was stopped.

    Several recipes that share shards, views and seeds fill several caches over one decode of the images. Any
    number of jobs may work on one cache: each skips what another has done, and --rank and --world (or the
    environment of torchrun, SLURM or Kubernetes) give each a share of its own.
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
    """Add seeds to a cache: as build, of a recipe whose cache.seeds has grown, e.g. by --set cache.seeds=60."""
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
        raise ClusterError("--actors belongs to --on ray; give both or neither")
    recipes = [load_recipe(path, CacheRecipe, changes or ()) for path in paths]
    if on is None:
        from teacher_cache.distributed.world import find_world
        from teacher_cache.labeling.job import build_all  # seconds, which a wrong recipe need not wait

        build_all(recipes, find_world(rank, world), extend=extend, check=check)
        return
    if rank is not None or world is not None:
        raise ClusterError("--on ray gives the units out by itself; leave --rank and --world out")
    with ray_session(parse_engine(on)):
        from teacher_cache.labeling.on_ray import build_on_ray  # needs Ray, which `joined` has found

        build_on_ray(recipes, actors=actors, extend=extend, check=check)


def status(cache: CacheArgument) -> None:
    """Say what a cache holds, what it is missing, and who its teacher was."""
    from rich.console import Console

    from teacher_cache.cache.status import status_table
    from teacher_cache.cache.target_cache import TargetCache

    Console().print(status_table(TargetCache.open(cache)))


def verify(
    cache: CacheArgument,
    replay: Annotated[
        int, typer.Option(min=0, help="Draw and render this many random views again, and compare their digests.")
    ] = 0,
    teacher: Annotated[
        bool,
        typer.Option("--teacher", help="Let the recipe's teacher judge the replayed views again, too."),
    ] = False,
    shards: ShardsOption = None,
    seed: Annotated[int, typer.Option(help="Another seed replays other views.")] = 0,
) -> None:
    """Check every object of a cache against its marker, and at a wish replay some of its views."""
    from teacher_cache.cache.verify import verify as verify_cache

    verify_cache(cache, replay=replay, teacher=teacher, shards=shards, seed=seed)


def show(
    cache: CacheArgument,
    seed: Annotated[int, typer.Option(min=0, help="The augmentation seed.")] = 0,
    shard: Annotated[int, typer.Option(min=0, help="The shard's number.")] = 0,
    rows: Annotated[int, typer.Option(min=1, max=64, help="How many images, from the shard's first on.")] = 8,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The picture to write.")] = Path("sheet.png"),
    shards: ShardsOption = None,
) -> None:
    """Draw a contact sheet: each image, its view, its mixed view, its label and what the teacher said of it."""
    from teacher_cache.cache.contact_sheet import draw_sheet

    draw_sheet(cache, seed, shard, rows, out, shards)


def _names_there(path: str) -> tuple[str, ...]:
    """The names in an index that is made anew; () where there is none that can be read."""
    from teacher_cache.data.index import load_index

    try:
        return load_index(path).classes
    except ShardError:
        return ()


def _read_names(path: Path | None) -> tuple[str, ...]:
    """Class names, one a line; () without a file."""
    if path is None:
        return ()
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        raise ShardError(f"class names '{path}' cannot be read: {error}; check the path") from None
    if not all(names):
        raise ShardError(f"class names '{path}': line {names.index('') + 1} is empty; give each class a name")
    if not names:
        raise ShardError(f"class names '{path}' is empty; give one name a line")
    return names
