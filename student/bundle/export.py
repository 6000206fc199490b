"""Export a finished run as a bundle: weights, cards, labels, check images and, on request, an ONNX file."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from student.bundle.bundle import Bundle, check_fusion, open_bundle
from student.bundle.check_images import make_check, save_check
from student.bundle.onnx import require_onnx, write_onnx
from student.bundle.readme import write_readme, write_timm_config
from student.bundle.transfer import require_unused, send_bundle
from teacher_cache.data.index import ShardIndex, load_index
from teacher_cache.errors import LimbeckError, RunError
from teacher_cache.models.card import Card
from teacher_cache.models.weights import new_folder, write_network
from teacher_cache.storage.store import is_remote


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    fusion: the bundle's default fusion; "" keeps the run's. ema: export the moving average of the weights. images:
    shards for the check images; "" is the recipe's data.val. licence: SPDX name of the weights' license; "" is
    unknown. onnx: also write model.onnx.
    """

    fusion: str = ""
    ema: bool = False
    images: str = ""
    licence: str = ""
    onnx: bool = False


@dataclass(frozen=True)
class ExportResult:
    """The bundle's card, and the largest difference of model.onnx from torch's logits (None without the file)."""

    card: Card
    difference: float | None


def export(run: Path, out: str | Path, options: ExportOptions = ExportOptions()) -> ExportResult:
    """Write a finished run as a bundle. out: a new folder, which appears only when it is complete, or a URL.

    Raises RunError if the run is not usable or `out` exists, and RecipeError if the fusion needs another head.
    """
    if options.onnx:
        require_onnx()
    bundle = open_bundle(run, torch.device("cpu"), ema=options.ema)
    card = bundle.card.model_copy(update={"fusion": check_fusion(bundle.card, options.fusion)})
    index = _check_image_index(card, options.images)
    with _new_bundle(str(out).rstrip("/")) as folder:
        network = bundle.student.network
        write_network(folder, card, network.state_dict())
        check = make_check(Bundle(card, bundle.student, bundle.device), index)
        save_check(folder, check, card.sha256)
        difference = write_onnx(folder, bundle, check) if options.onnx else None
        write_timm_config(folder, card, network)
        write_readme(
            folder,
            str(out).rstrip("/").rpartition("/")[2],
            card,
            weights="a moving average" if options.ema else "the last ones",
            licence=options.licence,
            check_source=index.folder,
            images=len(check.keys),
            difference=difference,
        )
    return ExportResult(card, difference)


@contextmanager
def _new_bundle(out: str) -> Iterator[Path]:
    """Yield a temporary folder; at the end its files become the bundle."""
    if not is_remote(out):
        with new_folder(Path(out)) as folder:
            yield folder
        return
    require_unused(out)
    with TemporaryDirectory(prefix="limbeck-") as scratch:
        yield Path(scratch)
        send_bundle(Path(scratch), out)


def _check_image_index(card: Card, images: str) -> ShardIndex:
    shards = images or card.recipe.get("data", {}).get("val", "")
    if not shards:
        raise RunError("the recipe of this run has no data.val for the check images; give --images SHARDS")
    try:
        return load_index(shards)
    except LimbeckError as error:
        raise type(error)(f"check images: {error}; or give other shards with --images") from None
