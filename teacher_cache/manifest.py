"""What a cache promises, and how two promises differ."""

from dataclasses import asdict, dataclass, field
from typing import Any

from teacher_cache.errors import CacheError
from teacher_cache.pixels import library_versions
from teacher_cache.recipe import ViewPolicy, differences, parse_recipe
from teacher_cache.shards import ShardIndex
from teacher_cache.view import VIEW_VERSION

CACHE_FORMAT = 1

Plain = dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """The attributes of a cache's Zarr group.

    shards: class names, row counts and checksums, in order. libraries: versions of what makes pixels.
    """

    views: Plain
    teacher: Plain
    encoding: Plain
    shards: Plain
    seeds: int
    seeds_per_unit: int
    recipe: Plain
    libraries: Plain = field(default_factory=library_versions)
    view_version: int = VIEW_VERSION
    format: int = CACHE_FORMAT

    def plain(self) -> Plain:
        return asdict(self)

    @property
    def policy(self) -> ViewPolicy:
        return parse_recipe(self.views, ViewPolicy, "the cache's view policy")


def read_manifest(plain: Plain, where: str) -> Manifest:
    """Raises CacheError for another format, or for attributes that are no manifest."""
    found = plain.get("format")
    if found != CACHE_FORMAT:
        raise CacheError(
            f"cache '{where}' has format {found}, this version of limbeck reads {CACHE_FORMAT}; build a new cache"
        )
    try:
        return Manifest(**plain)
    except TypeError as error:
        raise CacheError(
            f"cache '{where}' has a manifest that cannot be read ({error}); build a new cache"
        ) from None


def compare(found: Manifest, wanted: Plain) -> list[str]:
    """Each field of `wanted` (some of a manifest's) that the cache has otherwise, as a phrase for a person."""
    have = found.plain()
    phrases = []
    for name, there, here in differences({name: have.get(name) for name in wanted}, wanted):
        if isinstance(there, list) and isinstance(here, list):
            phrases.append(f"{name}: {_compare_lists(there, here)}")
        else:
            phrases.append(f"{name} is {_show(there)} there and {_show(here)} here")
    return phrases


def require(found: Manifest, wanted: Plain, where: str, advice: str) -> None:
    """Raises CacheError naming every differing field."""
    if phrases := compare(found, wanted):
        raise CacheError(f"cache '{where}' was built for something else: {'; '.join(phrases)}; {advice}")


def shard_set(index: ShardIndex) -> Plain:
    """The part of a manifest that says which shards it is about."""
    return {"shards": index.contents()}


def _compare_lists(there: list[Any], here: list[Any]) -> str:
    if len(there) != len(here):
        return f"{len(there)} entries there and {len(here)} here"
    apart = [number for number, (a, b) in enumerate(zip(there, here, strict=True)) if a != b]
    first = apart[0]
    return (
        f"{len(apart)} of {len(there)} entries differ, the first is number {first}: "
        f"{_show(there[first])} there and {_show(here[first])} here"
    )


def _show(value: Any) -> str:
    return "absent" if value is None else repr(value)
