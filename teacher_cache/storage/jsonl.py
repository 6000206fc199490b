"""Append-only JSON Lines files."""

import json
from pathlib import Path
from typing import Any

from teacher_cache.storage.atomic import write_atomic


class Journal:
    """Appends one JSON object a line to a file; a line cut short by a kill is dropped when it is read again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, **fields: Any) -> None:
        torn = self._path.exists() and not self._path.read_bytes().endswith(b"\n")
        if torn:  # by a kill; what is left of that line would spoil this one
            self.replace(self.read())
        with self._path.open("a") as file:
            file.write(json.dumps(fields) + "\n")

    def read(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        return [
            json.loads(line) for line in self._path.read_text().splitlines(keepends=True) if line.endswith("\n")
        ]

    def replace(self, lines: list[dict[str, Any]]) -> None:
        """Replace the file by these lines (a resumed run drops what came after its checkpoint)."""
        write_atomic(self._path, "".join(json.dumps(line) + "\n" for line in lines).encode())
