"""The models that are served, by name and version. This is what every router works with:

    models: Registry = ...                          given to each router's function, as in app.create_app
    model = models.get(name, version)               "" is the first model, and its last version; UnknownModelError
    model.facts                                     ipc.messages.Facts: name, version, classes, heads, size, ...
    judged = await model.judge(image, fusion="", deadline=None, gone=None)
                                                    image: encoded bytes, or (S, S, 3) uint8 pixels; a Judged
    value = await model.ask(Task(image, kind=...))  another kind of work: a function in worker.TASKS, run in
                                                    a worker: (Bundle, (S, S, 3) uint8 pixels, Task) -> anything
                                                    that can be pickled (attention maps, say)
    models.listed()                                 each name and version with its state, for a repository index
    await models.load(name)                         read that bundle's folder again; on RunError the old one stays
    await models.unload(name)

Whatever goes wrong is an ImageError or a server.errors.RefusedError; refusals.status_of and headers_of say how
to answer it. Many images in one request: asyncio.gather(..., return_exceptions=True), so each fails alone.
deadline: seconds to the answer, or no worker begins; None is the settings'. gone: whether the client has left.
"""

import asyncio
import importlib
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

log = logging.getLogger("limbeck")


@dataclass(frozen=True)
class Source:
    """A bundle to serve, by its folder or URL. name, version: "" are timm's name and the start of the sha256."""

    folder: str
    name: str = ""
    version: str = ""

    @classmethod
    def parse(cls, text: str) -> "Source":
        """FOLDER, NAME=FOLDER or NAME@VERSION=FOLDER. Raises RunError for what is none of these."""
        label, is_labelled, folder = text.partition("=")
        if not is_labelled or "/" in label:
            label, folder = "", text
        if not folder:
            raise RunError(f"bundle '{text}' has no folder; give FOLDER, NAME=FOLDER or NAME@VERSION=FOLDER")
        name, _, version = label.partition("@")
        if not LABEL.fullmatch(name) or not LABEL.fullmatch(version):
            raise RunError(f"bundle {text!r}: a name and a version are of letters, digits, '.', '_' and '-'")
        return cls(folder, name, version)


@dataclass(frozen=True)
class ListedModel:
    """One line of the list of models. reason: why it is not served, where it is not."""

    name: str
    version: str
    ready: bool
    reason: str = ""


class Registry:
    """The pools of all bundles. One is replaced only by another that is ready, and answers what it was asked."""

    def __init__(self, crew: Supervisor, settings: Settings, metrics: ServerMetrics) -> None:
        self._crew, self._settings, self.metrics = crew, settings, metrics
        self._pools: dict[Source, Pool] = {}
        self._away: dict[Source, Pool] = {}
        self._copies = set[str]()
        self._retiring: dict[asyncio.Task[None], Pool] = {}
        self._lock = asyncio.Lock()

    async def open(self, sources: list[Source]) -> None:
        """Open every bundle. Raises RunError for the first that cannot be, or for two of one name and version."""
        found = await asyncio.gather(*(self._open(source) for source in sources), return_exceptions=True)
        opened = [pool for pool in found if isinstance(pool, Pool)]
        try:
            for one in found:
                if isinstance(one, BaseException):
                    raise one
            _check_different(opened)
            self._pools.update(zip(sources, opened, strict=True))
        except BaseException:
            for pool in opened:
                pool.drop()
            raise

    def get(self, name: str = "", version: str = "") -> Pool:
        """A model by name and version; "" is the first name, and its last version. Raises UnknownModelError."""
        found = None
        for pool in self._pools.values():
            name = name or pool.facts.name
            if pool.facts.name == name and version in ("", pool.facts.version):
                found = pool
        if found is None:
            wanted = f"'{name}' version '{version}'" if version else f"'{name}'" if name else "at all"
            raise UnknownModelError(f"there is no model {wanted}; the models are: {self._names() or 'none'}")
        return found

    def pools(self) -> list[Pool]:
        """All that are served, in the order of the command line."""
        return list(self._pools.values())

    def listed(self) -> list[ListedModel]:
        """Every bundle that the server was started with, served or not."""
        told = {pool: "; ".join(pool.problems()) for pool in self._pools.values()}
        told |= dict.fromkeys(self._away.values(), "unloaded")
        return [ListedModel(pool.facts.name, pool.facts.version, not why, why) for pool, why in told.items()]

    async def load(self, name: str) -> None:
        """Read the bundles of a name again and serve what is new. Raises RunError, and the old ones serve on."""
        async with self._lock:
            both = self._pools | self._away
            sources = [source for source, pool in both.items() if pool.facts.name == name]
            if not sources:
                raise UnknownModelError(f"there is no model '{name}'; the models are: {self._names() or 'none'}")
            await self._reload({source: both[source] for source in sources})

    async def unload(self, name: str) -> None:
        """Serve a name no more; what it was asked is still answered."""
        async with self._lock:
            self.get(name)
            for source, pool in list(self._pools.items()):
                if pool.facts.name == name:
                    self._away[source] = self._pools.pop(source)
                    self._retire(pool)

    async def reload(self) -> None:
        """Read again every bundle that is served; one that cannot be used is told of in the log."""
        for name in dict.fromkeys(pool.facts.name for pool in self.pools()):
            try:
                await self.load(name)
            except (LimbeckError, OSError) as error:  # OSError: the holder or the nursery was killed meanwhile
                log.error("%s; the old one serves on", error)

    async def close(self) -> None:
        """End all workers; what still waits is refused."""
        for task in self._retiring:
            task.cancel()
        for pool in [*self._pools.values(), *self._retiring.values()]:
            pool.drop()
        for folder in list(self._copies):
            self._remove_copy(folder)

    async def _open(self, source: Source) -> Pool:
        settings = self._settings
        folder = self._folder_of(source.folder)
        order = HostSpec(
            folder=folder,
            name=source.name,
            version=source.version,
            device=settings.device,
            runtime=settings.runtime,
            batch=settings.batch,
            max_pixels=settings.max_pixels,
        )
        try:
            if folder in self._copies:
                await run_in_daemon_thread(self._fetch, source.folder, folder)
            return await Pool.open(self._crew, order, settings, self.metrics)
        except BaseException:
            self._remove_copy(folder)
            raise

    def _folder_of(self, where: str) -> str:
        """A folder as it is, of a URL an empty one for its copy, which goes with its pool."""
        if not is_remote(where):
            return where
        folder = tempfile.mkdtemp(prefix="limbeck-")
        self._copies.add(folder)
        return folder

    def _fetch(self, url: str, folder: str) -> None:
        # It brings torch along, seconds and hundreds of megabytes that this process otherwise does without.
        shipping = importlib.import_module("student.bundle.transfer")
        try:
            shipping.fetch_bundle(url, Path(folder))
        finally:
            if folder not in self._copies:  # removed meanwhile, as the server ends
                shutil.rmtree(folder, ignore_errors=True)

    def _remove_copy(self, folder: str) -> None:
        if folder in self._copies:
            self._copies.remove(folder)
            shutil.rmtree(folder, ignore_errors=True)

    async def _reload(self, olds: dict[Source, Pool]) -> None:
        """Replace all of these that have changed, or none. Raises RunError."""
        opened: dict[Source, Pool] = {}
        try:
            for source, old in olds.items():
                card = await run_in_daemon_thread(_card, source.folder)
                if source in self._pools and card == old.facts.card:
                    log.warning("%s version %s has not changed, and is served on", *_label(old))
                else:
                    opened[source] = await self._open(source)
            _check_different((self._pools | opened).values())
        except BaseException:
            for pool in opened.values():
                pool.drop()
                self._forget(pool)
            raise
        for source, new in opened.items():
            away = self._away.pop(source, None)
            self._pools[source] = new
            if away is None:
                self._retire(olds[source])
            log.warning("%s version %s is served now", new.facts.name, new.facts.version)

    def _retire(self, pool: Pool) -> None:
        task = asyncio.create_task(pool.close())
        self._retiring[task] = pool
        task.add_done_callback(self._retired)

    def _retired(self, task: asyncio.Task[None]) -> None:
        self._forget(self._retiring.pop(task))

    def _forget(self, pool: Pool) -> None:
        """Metrics tell no more of a pool; another may bear its labels, and goes on with its counts."""
        self._remove_copy(pool.order.folder)
        others = [*self._pools.values(), *self._retiring.values()]
        self.metrics.forget(*_label(pool), counts=_label(pool) not in map(_label, others))
        for other in others:
            other.publish_metrics()

    def _names(self) -> str:
        return ", ".join(f"{pool.facts.name} ({pool.facts.version})" for pool in self._pools.values())


def _label(pool: Pool) -> tuple[str, str]:
    return pool.facts.name, pool.facts.version


def _check_different(pools: Iterable[Pool]) -> None:
    """Raises RunError where two are of one name and version."""
    seen = set[tuple[str, str]]()
    for name, version in map(_label, pools):
        if (name, version) in seen:
            raise RunError(
                f"two bundles are '{name}' version '{version}'; name one with NAME=FOLDER or NAME@VERSION=FOLDER"
            )
        seen.add((name, version))


def _card(folder: str) -> str:
    """The digest of a bundle's card, or of a run's; "" where it cannot be read."""
    for place in (f"{folder}/{FINAL}", folder):
        try:
            return card_digest(read_url(f"{place}/{CARD_NAME}"))
        except (OSError, ValueError, RecursionError, LimbeckError):
            continue
    return ""
