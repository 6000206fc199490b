"""Serve the fused classifier over HTTP."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from server.app import create_app as create_app
    from server.settings import Settings as Settings

_MODULES = {
    "Settings": "server.settings",
    "create_app": "server.app",
}
"""The public names. Their modules are imported on first use, so that importing the package stays cheap."""

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
