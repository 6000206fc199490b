"""Run a convnet once over seeded views of WebDataset shards and store its targets in Zarr."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teacher_cache.cache.target_cache import TargetCache as TargetCache
    from teacher_cache.cache.target_cache import Targets as Targets
    from teacher_cache.cache.verify import verify as verify
    from teacher_cache.config import load_recipe as load_recipe
    from teacher_cache.data.index import ShardIndex as ShardIndex
    from teacher_cache.data.index import load_index as load_index
    from teacher_cache.errors import LimbeckError as LimbeckError
    from teacher_cache.labeling.job import build as build
    from teacher_cache.packing.pack import pack as pack
    from teacher_cache.recipe import CacheRecipe as CacheRecipe
    from teacher_cache.views.policy import ViewPolicy as ViewPolicy

_MODULES = {
    "CacheRecipe": "teacher_cache.recipe",
    "LimbeckError": "teacher_cache.errors",
    "ShardIndex": "teacher_cache.data.index",
    "TargetCache": "teacher_cache.cache.target_cache",
    "Targets": "teacher_cache.cache.target_cache",
    "ViewPolicy": "teacher_cache.views.policy",
    "build": "teacher_cache.labeling.job",
    "load_index": "teacher_cache.data.index",
    "load_recipe": "teacher_cache.config",
    "pack": "teacher_cache.packing.pack",
    "verify": "teacher_cache.cache.verify",
}
"""The public names. Their modules are imported on first use, so that importing the package stays cheap."""

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
