"""What a network on disk is: its card (JSON), which needs none of the libraries that networks do."""

import hashlib
import json
from pathlib import Path

from teacher_cache.config import Plain, Table, parse_recipe
from teacher_cache.errors import RecipeError, RunError
from teacher_cache.models.spec import EvalSpec, NetworkSpec

CARD_FORMAT = 1
CARD_NAME = "card.json"


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
