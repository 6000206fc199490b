"""What a network on disk is: its card (JSON), which needs none of the libraries that networks do."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from teacher_cache.errors import RecipeError, RunError
from teacher_cache.recipe import Interpolation, Positive, Table, parse_recipe

CARD_FORMAT = 1
CARD_NAME = "card.json"

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of the colours of ImageNet, red, green and blue from 0 to 1."""

Colour = tuple[float, float, float]
Plain = dict[str, Any]


class NetworkSpec(Table):
    """Which network: a timm name, with arguments for its constructor."""

    name: str
    args: Plain = Field(default_factory=dict)
    """Passed to timm.create_model: img_size, patch_size, embed_dim, drop_path_rate, ..."""
    small_stem: bool = False
    """For images of 32 px or so: a ResNet's first convolution becomes 3x3 with stride 1, without pooling."""
    pretrained: bool = False
    """Begin with timm's pretrained weights (from the hub) instead of random ones."""
    mean: Colour = MEAN
    std: Colour = STD


class EvalSpec(Table):
    """What the network sees at test: short side to size / crop, then the middle."""

    size: Positive
    crop: Annotated[float, Field(gt=0, le=1)]
    interpolation: Interpolation = "bicubic"


class Card(Table):
    """All that is needed to use the weights beside it, and where they come from."""

    format: int
    network: NetworkSpec
    eval: EvalSpec
    classes: tuple[str, ...]
    heads: tuple[str, ...]
    """The outputs that were trained: ("class",) or ("class", "distill")."""
    fusion: str
    """How the heads become one answer unless a request says otherwise."""
    sha256: str
    """Of the weights."""
    accuracy: dict[str, float]
    """Top-1 on the validation shards by head, in percent."""
    recipe: Plain


def load_card(folder: Path) -> Card:
    """Read and check a card; raises RunError where it is missing or unreadable."""
    path = folder / CARD_NAME
    try:
        card = parse_recipe(json.loads(path.read_text()), Card, f"'{path}'")
    except FileNotFoundError:
        raise RunError(f"'{folder}' holds no {CARD_NAME}; give a folder made by limbeck export or train") from None
    except (OSError, ValueError) as error:
        raise RunError(f"'{path}' cannot be read: {error}; export the model anew") from None
    except RecipeError as error:
        raise RunError(f"{error}; export the model anew") from None
    if card.format != CARD_FORMAT:
        raise RunError(f"'{path}' has format {card.format}, this version reads {CARD_FORMAT}; export it anew")
    return card


def card_digest(data: bytes) -> str:
    """By which two cards are the same, however their files are laid out. Raises ValueError for what is no JSON."""
    return hashlib.sha256(json.dumps(json.loads(data), sort_keys=True).encode()).hexdigest()
