"""Bundles on their way: sent to a URL, and fetched from one."""

import hashlib
import shutil
import tempfile
from pathlib import Path
from threading import Lock

from teacher_cache.disk import whole_folder
from teacher_cache.errors import RunError, StoreError
from teacher_cache.network import CARD_NAME, load_card, load_weights
from teacher_cache.store import is_remote, open_store


def check_free(url: str) -> None:
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


class Copies:
    """Local copies of bundles at URLs, in a temporary folder of their own."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._one = Lock()

    def of(self, where: str) -> Path:
        """A local folder as it is; of a URL a checked copy of now. Raises RunError where it is no bundle."""
        if not is_remote(where):
            return Path(where)
        try:
            with self._one:
                return self._fetched(where)
        except StoreError as error:
            raise RunError(str(error)) from None

    def _fetched(self, where: str) -> Path:
        store = open_store(where)
        try:
            card = store.get(CARD_NAME)
        except FileNotFoundError:
            raise RunError(f"no bundle at '{where}'; send one there with: limbeck export RUN {where}") from None
        self._folder = self._folder or Path(tempfile.mkdtemp(prefix="limbeck-"))
        copy = self._folder / hashlib.sha256(where.encode() + card).hexdigest()[:16]
        if copy.exists():
            return copy
        with whole_folder(copy) as folder:
            for name in sorted(store.names("")):
                (folder / name).write_bytes(store.get(name))
            try:
                load_weights(folder, load_card(folder))
            except RunError as error:
                raise RunError(str(error).replace(str(folder), where)) from None
        return copy

    def close(self) -> None:
        """Remove them all."""
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
