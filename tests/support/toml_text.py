"""A recipe's tables as TOML, which has no value for an unset key."""

from collections.abc import Mapping
from typing import Any

import tomli_w


def to_toml(tables: Mapping[str, Any]) -> str:
    """The text of resolved tables, without the keys that are None."""
    return tomli_w.dumps(
        {name: {k: v for k, v in table.items() if v is not None} for name, table in tables.items()}
    )
