"""The description of a bundle for people (README.md) and for timm (config.json)."""

import json
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from timm.models._hub import save_config_for_hf  # the public save_for_hf also writes the weights
from torch import nn

from teacher_cache.models.card import Card

README_NAME, TIMM_NAME = "README.md", "config.json"

LABELS_SHOWN = 20


def write_readme(
    folder: Path,
    name: str,
    card: Card,
    *,
    weights: str,
    licence: str,
    check_source: str,
    images: int,
    difference: float | None,
) -> None:
    """Write README.md.

    name: the bundle's folder name. weights: in words, the last ones or the average. licence: SPDX name, "" is
    unknown. check_source, images: shards and number of the check images. difference: the largest difference of
    model.onnx from torch's logits, None without model.onnx.
    """
    templates = Environment(loader=PackageLoader("student"), undefined=StrictUndefined, keep_trailing_newline=True)
    template = templates.get_template("model_card.md.j2")
    labels = ", ".join(card.classes[:LABELS_SHOWN])
    more = len(card.classes) - LABELS_SHOWN
    text = template.render(
        card=card,
        name=name,
        weights=weights,
        license=licence or "other",
        license_text=licence or "not stated; ask the author, the license of the training images may apply too",
        two_headed="distill" in card.heads,
        data=card.recipe.get("data"),
        recipe={"cache": None} | card.recipe,
        timm=not card.network.small_stem,
        images=images,
        check_source=check_source,
        difference=difference,
        labels=labels + (f" and {more} more, in labels.txt" if more > 0 else ""),
        recipe_text=json.dumps(card.recipe, indent=1),
    )
    (folder / README_NAME).write_text(text, "utf-8", "backslashreplace")


def write_timm_config(folder: Path, card: Card, network: nn.Module) -> None:
    """Write config.json for timm.create_model("local-dir:FOLDER"), unless timm cannot build it (a small stem)."""
    if card.network.small_stem:
        return
    size = card.eval.size
    data_config = {
        "input_size": (3, size, size),
        "interpolation": card.eval.interpolation,
        "mean": card.network.mean,
        "std": card.network.std,
        "crop_pct": card.eval.crop,
        "crop_mode": "center",
    }
    config = {"label_names": list(card.classes)}
    save_config_for_hf(
        network, str(folder / TIMM_NAME), config, model_args=card.network.args, data_config=data_config
    )
