"""What a cache promises, and how two promises differ."""

from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from teacher_cache.cache.encoding import Encoding
from teacher_cache.config import Plain, differences, digest_of, parse_recipe
from teacher_cache.errors import CacheError, RecipeError
from teacher_cache.views.policy import ViewPolicy
from teacher_cache.views.view import VIEW_VERSION

CACHE_FORMAT = 2
PIXEL_LIBRARIES = ("numpy", "opencv-python-headless", "pillow", "simplejpeg", "torch", "xxhash")


def library_versions() -> dict[str, str]:
    """The versions of the libraries that shape pixels, without what names a build such as torch's "+cu130"."""
    return {name: version(name).partition("+")[0] for name in PIXEL_LIBRARIES}


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

    def with_checksum(self) -> Plain:
        """The plain manifest with its own sha256, as it is stored."""
        return self.plain() | {"sha256": digest_of(self.plain())}

    @property
    def policy(self) -> ViewPolicy:
        return parse_recipe(self.views, ViewPolicy, "the cache's view policy")

    def likely_cause(self) -> str:
        """Why a view may be rendered otherwise than the teacher saw it, in a phrase for a person."""
        changed = differences(self.libraries, library_versions())
        if changed:
            return "libraries changed: " + ", ".join(
                f"{name} was {cached_version}, is {current_version}"
                for name, cached_version, current_version in changed
            )
        return "no library changed, so the shard's images did, or this machine renders them otherwise"

    @property
    def rows(self) -> list[int]:
        """Of each shard."""
        return list(self.shards["rows"])

    @property
    def codec(self) -> Encoding:
        return Encoding(classes=len(self.shards["classes"]), **self.encoding)


def read_manifest(plain: Plain, where: str) -> Manifest:
    """Raises CacheError for another format, and for attributes that are no manifest or not as they were sealed."""
    found = plain.get("format")
    if found != CACHE_FORMAT:
        raise CacheError(
            f"cache '{where}' has format {found}, this version of limbeck reads {CACHE_FORMAT}; build a new cache"
        )
    fields = {name: value for name, value in plain.items() if name != "sha256"}
    try:
        if digest_of(fields) != plain.get("sha256"):
            raise ValueError("it is not as it was written, its sha256 differs")
        manifest = Manifest(**fields)
        _ = manifest.policy, manifest.codec, manifest.rows
    except (KeyError, TypeError, ValueError, RecipeError) as error:
        raise CacheError(
            f"cache '{where}' has a manifest that cannot be read ({error}); restore zarr.json or build a new cache"
        ) from None
    return manifest


def diff(found: Manifest, wanted: Plain) -> list[str]:
    """Each field of `wanted` (some of a manifest's) that the cache has otherwise, as a phrase for a person."""
    fields = found.plain()
    phrases = []
    for name, cached, requested in differences({name: fields.get(name) for name in wanted}, wanted):
        if isinstance(cached, list) and isinstance(requested, list):
            phrases.append(f"{name}: {_compare_lists(cached, requested)}")
        else:
            phrases.append(f"{name} is {_format_value(cached)} there and {_format_value(requested)} here")
    return phrases


def require_match(found: Manifest, wanted: Plain, where: str, advice: str) -> None:
    """Raises CacheError naming every differing field."""
    if phrases := diff(found, wanted):
        raise CacheError(f"cache '{where}' was built for something else: {'; '.join(phrases)}; {advice}")


def _compare_lists(cached: list[Any], requested: list[Any]) -> str:
    if len(cached) != len(requested):
        return f"{len(cached)} entries there and {len(requested)} here"
    differing = [number for number, (a, b) in enumerate(zip(cached, requested, strict=True)) if a != b]
    first = differing[0]
    return (
        f"{len(differing)} of {len(cached)} entries differ, the first is number {first}: "
        f"{_format_value(cached[first])} there and {_format_value(requested[first])} here"
    )


def _format_value(value: Any) -> str:
    return "absent" if value is None else repr(value)
