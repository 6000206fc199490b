"""Send bundles to a URL and fetch them from one."""

from pathlib import Path

from teacher_cache.errors import RunError
from teacher_cache.models.card import CARD_NAME, load_card
from teacher_cache.models.weights import load_weights
from teacher_cache.storage.store import open_store


def require_unused(url: str) -> None:
    """Raise RunError if there is a bundle at a URL. Files without a card, from a killed export, do not count."""
    names = open_store(url).names("")
    if CARD_NAME in names:
        raise RunError(f"'{url}' exists; remove it or choose another URL")


def send_bundle(folder: Path, url: str) -> None:
    """Send a bundle's files, with the card last. Raises RunError if another process sent its card first."""
    store = open_store(url)
    for path in sorted(folder.iterdir()):
        if path.name != CARD_NAME:
            store.put(path.name, path.read_bytes())
    card = (folder / CARD_NAME).read_bytes()
    # An equal card is our own: the reply to the first attempt was lost.
    if not store.create(CARD_NAME, card) and store.get(CARD_NAME) != card:
        raise RunError(f"another process exported to '{url}' at the same time; remove it and export again")


def fetch_bundle(url: str, folder: Path) -> None:
    """Copy a bundle from a URL into an empty folder, and check its weights.

    Raises RunError if the URL has no valid bundle, StoreError if it cannot be reached.
    """
    store = open_store(url)
    try:
        card = store.get(CARD_NAME)
    except FileNotFoundError:
        raise RunError(f"'{url}' has no bundle; export one with: limbeck export RUN {url}") from None
    for name in sorted(store.names("")):
        (folder / name).write_bytes(card if name == CARD_NAME else store.get(name))
    try:
        load_weights(folder, load_card(folder))
    except RunError as error:
        raise RunError(str(error).replace(str(folder), url)) from None
