"""The served models, by name and version.

    models: Registry = ...                          an argument of each function that adds routes
    model = models.get(name, version)               raises UnknownModelError
    model.info                                      server.ipc.messages.ModelInfo
    await model.predict(image, fusion="")           image: encoded bytes, or (S, S, 3) uint8 pixels
    await model.run(Task(image, kind=...))          another kind of work: a key of attention_maps.TASKS
    models.list_models()                            each name and version with its state
    await models.load(name)                         reads that bundle again; on RunError the old one stays loaded
    await models.unload(name)

predict and run raise an ImageError or a server.errors.RefusedError; server.errors.status_of and headers_of give
the HTTP status and headers for it.
"""

import asyncio
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from server.errors import UnknownModelError
from server.ipc.spawn import HostSpec
from server.metrics import ServerMetrics
from server.serving.background import run_in_daemon_thread
from server.serving.pool import Pool
from server.serving.supervisor import Supervisor
from server.settings import Settings
from teacher_cache.errors import LimbeckError, RunError
from teacher_cache.models.card import CARD_NAME, card_digest
from teacher_cache.models.run_folder import FINAL
from teacher_cache.storage.download import read_url
from teacher_cache.storage.store import is_remote

LABEL = re.compile(r"[\w.-]*", re.ASCII)
"""Allowed names and versions."""

log = logging.getLogger("limbeck")


@dataclass(frozen=True)
class Source:
    """A bundle to serve. folder: may be a URL. name: "" is timm's name. version: "" is 8 digits of the sha256."""

    folder: str
    name: str = ""
    version: str = ""

    @classmethod
    def parse(cls, text: str) -> "Source":
        """Parse FOLDER, NAME=FOLDER or NAME@VERSION=FOLDER. Raises RunError for other text."""
        label, has_label, folder = text.partition("=")
        if not has_label or "/" in label:
            label, folder = "", text
        if not folder:
            raise RunError(f"bundle '{text}' has no folder; give FOLDER, NAME=FOLDER or NAME@VERSION=FOLDER")
        name, _, version = label.partition("@")
        if not LABEL.fullmatch(name) or not LABEL.fullmatch(version):
            raise RunError(f"bundle {text!r}: name and version may contain letters, digits, '.', '_' and '-'")
        return cls(folder, name, version)


@dataclass(frozen=True)
class ListedModel:
    """A model with its state. reason: why it is not ready; "" if it is."""

    name: str
    version: str
    ready: bool
    reason: str = ""


class Registry:
    """The pools of all bundles. A pool is replaced after the new one is ready, and still answers its requests."""

    def __init__(self, supervisor: Supervisor, settings: Settings, metrics: ServerMetrics) -> None:
        self._supervisor, self._settings, self.metrics = supervisor, settings, metrics
        self._pools: dict[Source, Pool] = {}
        self._unloaded: dict[Source, Pool] = {}
        self._downloads = set[str]()
        """Temporary folders with the bundles of URLs; each is deleted with its pool."""
        self._closing: dict[asyncio.Task[None], Pool] = {}
        self._lock = asyncio.Lock()

    async def open(self, sources: list[Source]) -> None:
        """Open all bundles. Raises RunError if one cannot be used, or if two have the same name and version."""
        results = await asyncio.gather(*(self._open(source) for source in sources), return_exceptions=True)
        opened = [result for result in results if isinstance(result, Pool)]
        try:
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            _check_unique(opened)
            self._pools.update(zip(sources, opened, strict=True))
        except BaseException:
            for pool in opened:
                pool.abort()
            raise

    def get(self, name: str = "", version: str = "") -> Pool:
        """Find a model. name: "" is the first. version: "" is the last of that name. Raises UnknownModelError."""
        found = None
        for pool in self._pools.values():
            name = name or pool.info.name
            if pool.info.name == name and version in ("", pool.info.version):
                found = pool
        if found is None:
            raise self._unknown(name, version)
        return found

    def pools(self) -> list[Pool]:
        """All loaded models, in the order of the command line."""
        return list(self._pools.values())

    def list_models(self) -> list[ListedModel]:
        """All models of the command line, loaded or not."""
        reasons = {pool: "; ".join(pool.problems()) for pool in self._pools.values()}
        reasons |= dict.fromkeys(self._unloaded.values(), "unloaded")
        return [ListedModel(*_label(pool), not reason, reason) for pool, reason in reasons.items()]

    async def load(self, name: str) -> None:
        """Read the bundles of this name again, and replace those that have changed; none if RunError is raised."""
        async with self._lock:
            pools = (self._pools | self._unloaded).items()
            named = {source: pool for source, pool in pools if pool.info.name == name}
            if not named:
                raise self._unknown(name)
            await self._reload(named)

    async def unload(self, name: str) -> None:
        """Unload all versions of a name, after their waiting requests are answered. Raises UnknownModelError."""
        async with self._lock:
            self.get(name)
            for source, pool in list(self._pools.items()):
                if pool.info.name == name:
                    self._unloaded[source] = self._pools.pop(source)
                    self._close_pool(pool)

    async def reload(self) -> None:
        """Read all loaded bundles again. Those that cannot be used are logged, and their old pools stay."""
        for name in dict.fromkeys(pool.info.name for pool in self.pools()):
            try:
                await self.load(name)
            except (LimbeckError, OSError) as error:  # OSError: the model host or the forkserver was killed
                log.error("reload of %s failed: %s; the old bundle stays loaded", name, error)

    async def close(self) -> None:
        """Stop all workers; waiting requests get a BusyError."""
        for task in self._closing:
            task.cancel()
        for pool in [*self._pools.values(), *self._closing.values()]:
            pool.abort()
        for folder in list(self._downloads):
            self._remove_download(folder)

    async def _open(self, source: Source) -> Pool:
        settings = self._settings
        folder = self._local_folder(source.folder)
        spec = HostSpec(
            folder=folder,
            name=source.name,
            version=source.version,
            device=settings.device,
            runtime=settings.runtime,
            batch=settings.batch,
            max_pixels=settings.max_pixels,
        )
        try:
            if folder in self._downloads:
                await run_in_daemon_thread(self._download, source.folder, folder)
            return await Pool.open(self._supervisor, spec, settings, self.metrics)
        except BaseException:
            self._remove_download(folder)
            raise

    def _local_folder(self, folder_or_url: str) -> str:
        """The folder itself; for a URL a new temporary folder."""
        if not is_remote(folder_or_url):
            return folder_or_url
        folder = tempfile.mkdtemp(prefix="limbeck-")
        self._downloads.add(folder)
        return folder

    def _download(self, url: str, folder: str) -> None:
        # Imported here because it imports torch, which this process does not need otherwise.
        from student.bundle.transfer import fetch_bundle

        try:
            fetch_bundle(url, Path(folder))
        finally:
            if folder not in self._downloads:  # the server has stopped, and a late write has created it again
                shutil.rmtree(folder, ignore_errors=True)

    def _remove_download(self, folder: str) -> None:
        if folder in self._downloads:
            self._downloads.remove(folder)
            shutil.rmtree(folder, ignore_errors=True)

    async def _reload(self, olds: dict[Source, Pool]) -> None:
        """Replace those pools whose bundle has changed; none if one cannot be opened. Raises RunError."""
        opened: dict[Source, Pool] = {}
        try:
            for source, old in olds.items():
                card = await run_in_daemon_thread(_card_digest, source.folder)
                if source in self._pools and card == old.info.card:
                    log.warning("%s version %s has not changed; nothing to reload", *_label(old))
                else:
                    opened[source] = await self._open(source)
            _check_unique((self._pools | opened).values())
        except BaseException:
            for pool in opened.values():
                pool.abort()
                self._remove_metrics(pool)
            raise
        for source, new in opened.items():
            was_unloaded = self._unloaded.pop(source, None) is not None
            self._pools[source] = new
            if not was_unloaded:
                self._close_pool(olds[source])
            log.warning("%s version %s is loaded", *_label(new))

    def _close_pool(self, pool: Pool) -> None:
        """Close a pool in the background."""
        task = asyncio.create_task(pool.close())
        self._closing[task] = pool
        task.add_done_callback(lambda task: self._remove_metrics(self._closing.pop(task)))

    def _remove_metrics(self, pool: Pool) -> None:
        """Remove a closed pool's metrics, but keep its counters if another pool has the same name and version."""
        self._remove_download(pool.spec.folder)
        others = [*self._pools.values(), *self._closing.values()]
        self.metrics.remove(*_label(pool), with_counters=_label(pool) not in map(_label, others))
        for other in others:
            other.publish_metrics()

    def _unknown(self, name: str, version: str = "") -> UnknownModelError:
        if not name:
            return UnknownModelError("no model is loaded")
        wanted = f"'{name}' version '{version}'" if version else f"'{name}'"
        names = ", ".join(f"{name} ({version})" for name, version in map(_label, self._pools.values()))
        return UnknownModelError(f"model {wanted} is not loaded; loaded models: {names or 'none'}")


def _label(pool: Pool) -> tuple[str, str]:
    return pool.info.name, pool.info.version


def _check_unique(pools: Iterable[Pool]) -> None:
    """Raise RunError if two pools have the same name and version."""
    seen = set[tuple[str, str]]()
    for name, version in map(_label, pools):
        if (name, version) in seen:
            raise RunError(
                f"two bundles have the name '{name}' and version '{version}'; "
                "give one another name with NAME=FOLDER or NAME@VERSION=FOLDER"
            )
        seen.add((name, version))


def _card_digest(folder: str) -> str:
    """The digest of the card of a bundle or of a run's final bundle; "" if it cannot be read."""
    for place in (f"{folder}/{FINAL}", folder):
        try:
            return card_digest(read_url(f"{place}/{CARD_NAME}"))
        except (OSError, ValueError, RecursionError, LimbeckError):
            continue
    return ""
