"""limbeck pack | index | cache build | cache status"""

from pathlib import Path
from typing import Annotated

import typer

from teacher_cache.errors import ShardError

ClassesOption = Annotated[
    Path | None,
    typer.Option(
        "--classes",
        metavar="FILE",
        help="A text file with one class name a line; the first line names label 0.",
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this package on the top-level app."""
    app.command()(pack)
    app.command()(index)
    cache = typer.Typer(no_args_is_help=True, help="Let a teacher label seeded views of every image, once.")
    cache.command()(build)
    cache.command()(status)
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
        Path, typer.Argument(help="The folder for the shards; made where it is not there.", show_default=False)
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

    Every image is decoded once, to see that it is whole. A pack that was stopped goes on where it stood when the
    same command is run again.
    """
    from teacher_cache.pack import pack as pack_images

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
            help="Folders of .tar files, .tar files, or paths and URLs with braces: "
            "'https://host/train-{0000..1023}.tar'.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The index, or a folder to write an index.json into; needed for URLs. "
            "[default: index.json in the folder of the shards]",
        ),
    ] = None,
    classes: ClassesOption = None,
) -> None:
    """Index WebDataset shards that exist already: their rows, checksums and classes.

    Every sample needs an image (.jpg, .png ...) and a .cls file with its class number; both are checked.
    """
    from teacher_cache.journal import say
    from teacher_cache.shards import INDEX_NAME, expand_shards, index_shards, save_index

    urls = expand_shards(shards)
    path = out if out is None or out.suffix == ".json" else out / INDEX_NAME
    if path is None:
        folders = {url.rpartition("/")[0] or "." for url in urls}
        if len(folders) > 1 or any("://" in url for url in urls):
            raise ShardError(f"where should the index of '{urls[0]}' lie? Name a file with --out FILE")
        path = Path(folders.pop()) / INDEX_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    made = index_shards(urls, path.parent, _read_names(classes))
    save_index(made, path)
    hint = "" if classes else "; classes bear their numbers, --classes FILE names them"
    say(
        f"indexed {made.rows:,} images of {len(made.classes)} classes in {len(made.shards):,} shards "
        f"in {path}{hint}"
    )


def build(
    recipe: Annotated[
        Path, typer.Argument(help="A TOML recipe: shards, views, teacher, cache.", show_default=False)
    ],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override one key, e.g. --set cache.seeds=30. May be repeated."),
    ] = None,
) -> None:
    """Run the teacher over the views a cache is missing. Rerun it to go on after a stop."""
    from teacher_cache.build import build as build_cache
    from teacher_cache.recipe import CacheRecipe, load_recipe

    build_cache(load_recipe(recipe, CacheRecipe, changes or ()))


def status(cache: Annotated[Path, typer.Argument(help="The cache's folder.", show_default=False)]) -> None:
    """Say what a cache holds, what it is missing, and who its teacher was."""
    from rich.console import Console

    from teacher_cache.cache import TargetCache
    from teacher_cache.status import status_table

    Console().print(status_table(TargetCache.open(cache)))


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
