"""The manifest of a cache, and the differences between two manifests."""

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
    """Versions of the libraries that affect pixels, without a local build suffix such as torch's "+cu130"."""
    return {name: version(name).partition("+")[0] for name in PIXEL_LIBRARIES}


@dataclass(frozen=True)
class Manifest:
    """The attributes of a cache's Zarr group.

    shards: class names, row counts and checksums, in order. libraries: versions of libraries that affect pixels.
    class_match: whether the teacher's outputs match the classes by "name" or "position"; None in caches of 0.1.0.
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
    class_match: str | None = None

    def plain(self) -> Plain:
        """All fields as JSON values, without class_match if it is None."""
        fields = asdict(self)
        if self.class_match is None:
            del fields["class_match"]
        return fields

    def with_checksum(self) -> Plain:
        """The plain manifest with its sha256, as stored in the root zarr.json."""
        return self.plain() | {"sha256": digest_of(self.plain())}

    @property
    def policy(self) -> ViewPolicy:
        """The view policy; raises RecipeError if it is invalid."""
        return parse_recipe(self.views, ViewPolicy, "the cache's view policy")

    def likely_cause(self) -> str:
        """The likely reason why a view's pixels differ from those the teacher labeled, for an error message."""
        changed = differences(self.libraries, library_versions())
        if changed:
            return "library versions changed: " + ", ".join(
                f"{name} {cached_version} -> {current_version}"
                for name, cached_version, current_version in changed
            )
        return (
            "library versions are the same; the shard's images changed, or this machine renders them differently"
        )

    @property
    def rows(self) -> list[int]:
        """Number of rows of each shard."""
        return list(self.shards["rows"])

    @property
    def codec(self) -> Encoding:
        """The encoding of the targets."""
        return Encoding(classes=len(self.shards["classes"]), **self.encoding)


def read_manifest(plain: Plain, where: str) -> Manifest:
    """Parse a stored manifest.

    where: location of the cache, for messages.
    Raises CacheError for another format, invalid fields, or a wrong sha256.
    """
    found = plain.get("format")
    if found != CACHE_FORMAT:
        raise CacheError(
            f"cache '{where}' has format {found}, but this version of limbeck reads format {CACHE_FORMAT}; "
            "build a new cache"
        )
    fields = {name: value for name, value in plain.items() if name != "sha256"}
    try:
        if digest_of(fields) != plain.get("sha256"):
            raise ValueError("its sha256 is wrong")
        manifest = Manifest(**fields)
        _ = manifest.policy, manifest.codec, manifest.rows
    except (KeyError, TypeError, ValueError, RecipeError) as error:
        raise CacheError(
            f"cache '{where}' has an invalid manifest ({error}); restore its zarr.json or build a new cache"
        ) from None
    return manifest


def diff(found: Manifest, wanted: Plain) -> list[str]:
    """Compare the fields in `wanted` with a cache's manifest; returns one phrase for each difference."""
    fields = found.plain()
    phrases = []
    for name, cached, requested in differences({name: fields.get(name) for name in wanted}, wanted):
        if isinstance(cached, list) and isinstance(requested, list):
            phrases.append(f"{name}: {_compare_lists(cached, requested)}")
        else:
            phrases.append(f"{name} is {_format_value(cached)} in the cache, expected {_format_value(requested)}")
    return phrases


def require_match(found: Manifest, wanted: Plain, where: str, advice: str) -> None:
    """Raise CacheError if any field in `wanted` differs; the message lists all of them, then `advice`."""
    if phrases := diff(found, wanted):
        raise CacheError(f"cache '{where}' does not match: {'; '.join(phrases)}; {advice}")


def _compare_lists(cached: list[Any], requested: list[Any]) -> str:
    if len(cached) != len(requested):
        return f"{len(cached)} entries in the cache, expected {len(requested)}"
    differing = [number for number, (a, b) in enumerate(zip(cached, requested, strict=True)) if a != b]
    first = differing[0]
    return (
        f"{len(differing)} of {len(cached)} entries differ, first entry {first} (0-based): "
        f"{_format_value(cached[first])} in the cache, expected {_format_value(requested[first])}"
    )


def _format_value(value: Any) -> str:
    return "absent" if value is None else repr(value)
