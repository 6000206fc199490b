"""Bundles on their way: sent to a URL, and fetched from one."""

from pathlib import Path

from teacher_cache.errors import RunError
from teacher_cache.models.card import CARD_NAME, load_card
from teacher_cache.models.weights import load_weights
from teacher_cache.storage.store import open_store


def require_unused(url: str) -> None:
    """Raises RunError where something lies at a URL; what a killed sender left has no card, and is nothing."""
    names = open_store(url).names("")
    if CARD_NAME in names:
        raise RunError(f"'{url}' is there already; remove it or choose another folder")


def send_bundle(folder: Path, url: str) -> None:
    """Send a bundle's files, the card last: without one it is no bundle. Of two senders one is refused."""
    store = open_store(url)
    for path in sorted(folder.iterdir()):
        if path.name != CARD_NAME:
            store.put(path.name, path.read_bytes())
    card = (folder / CARD_NAME).read_bytes()
    # A card that is there and the same is our own: the answer to the first attempt was lost on its way.
    if not store.create(CARD_NAME, card) and store.get(CARD_NAME) != card:
        raise RunError(f"'{url}' was sent by another at the same time; remove it and export again")


def fetch_bundle(url: str, folder: Path) -> None:
    """Fill an empty folder with a checked copy of a bundle at a URL as it is now.

    Raises RunError where it is no bundle, StoreError where it cannot be reached.
    """
    store = open_store(url)
    try:
        card = store.get(CARD_NAME)
    except FileNotFoundError:
        raise RunError(f"no bundle at '{url}'; send one there with: limbeck export RUN {url}") from None
    for name in sorted(store.names("")):
        (folder / name).write_bytes(card if name == CARD_NAME else store.get(name))
    try:
        load_weights(folder, load_card(folder))
    except RunError as error:
        raise RunError(str(error).replace(str(folder), url)) from None
