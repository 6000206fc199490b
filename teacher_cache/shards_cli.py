"""The commands limbeck pack and limbeck index."""

from pathlib import Path
from typing import Annotated, Literal

import typer

ClassesOption = Annotated[
    Path | None,
    typer.Option(
        "--classes",
        metavar="FILE",
        help="Text file with one class name per line; the first line is class 0.",
    ),
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


def add_commands(app: typer.Typer) -> None:
    """Register the commands of shards on the top-level app."""
    app.command()(pack)
    app.command()(index)


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
