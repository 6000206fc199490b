"""What a bundle says of itself to people (README.md) and to timm (config.json)."""

import json
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from timm.models._hub import save_config_for_hf  # the public save_for_hf writes the weights too
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
    """Write README.md. name: the bundle's folder. weights: which ones. licence: "" is not known.

    checked: where the check images come from. difference: of model.onnx from torch, None without one.
    """
    templates = Environment(loader=PackageLoader("student"), undefined=StrictUndefined, keep_trailing_newline=True)
    template = templates.get_template("model_card.md.j2")
    labels = ", ".join(card.classes[:LABELS_SHOWN])
    more = len(card.classes) - LABELS_SHOWN
    text = template.render(
        card=card,
        name=name,
        weights=weights,
        licence=licence or "other",
        licence_told=licence or "not stated: ask who trained it; that of the training images may bind you too",
        two="distill" in card.heads,
        data=card.recipe.get("data"),
        recipe={"cache": None} | card.recipe,
        timm=not card.network.small_stem,
        images=images,
        checked=check_source,
        difference=difference,
        labels=labels + (f" and {more} more, in labels.txt" if more > 0 else ""),
        recipe_text=json.dumps(card.recipe, indent=1),
    )
    (folder / README_NAME).write_text(text)


def write_timm_config(folder: Path, card: Card, network: nn.Module) -> None:
    """Write config.json, by which timm.create_model("local-dir:FOLDER") rebuilds it; none for a small stem."""
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
