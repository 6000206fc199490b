"""Model card (JSON): describes a network on disk; reading it does not import torch."""

import hashlib
import json
from pathlib import Path

from teacher_cache.config import Plain, Table, parse_recipe
from teacher_cache.errors import RecipeError, RunError
from teacher_cache.models.spec import EvalSpec, NetworkSpec

CARD_FORMAT = 1
CARD_NAME = "card.json"


class Card(Table):
    """How to use the weights in the same folder, and how they were trained."""

    format: int
    """Format version, CARD_FORMAT."""
    network: NetworkSpec
    eval: EvalSpec
    classes: tuple[str, ...]
    """Class names by label."""
    heads: tuple[str, ...]
    """Trained heads: ("class",) or ("class", "distill")."""
    fusion: str
    """Default rule that combines the heads into one prediction."""
    sha256: str
    """Hexadecimal sha256 of the weights, by `weights_sha256`."""
    accuracy: dict[str, float]
    """Top-1 accuracy in percent on the validation shards, by head."""
    recipe: Plain
    """Resolved recipe of the training."""


def load_card(folder: Path) -> Card:
    """Read and validate the card of a folder. Raises RunError if it is missing or invalid."""
    path = folder / CARD_NAME
    try:
        card = parse_recipe(json.loads(path.read_text(encoding="utf-8")), Card, f"'{path}'")
    except FileNotFoundError:
        raise RunError(f"'{folder}' has no {CARD_NAME}; give a folder of limbeck export or train") from None
    except (OSError, ValueError) as error:
        raise RunError(f"'{path}' cannot be read: {error}; export the model again") from None
    except RecipeError as error:
        raise RunError(f"{error}; export the model again") from None
    if card.format != CARD_FORMAT:
        raise RunError(f"'{path}' has format {card.format}, not {CARD_FORMAT}; export the model again")
    return card


def card_digest(data: bytes) -> str:
    """Hexadecimal sha256 of a card, independent of layout and key order. Raises ValueError if it is not JSON."""
    return hashlib.sha256(json.dumps(json.loads(data), sort_keys=True).encode()).hexdigest()
