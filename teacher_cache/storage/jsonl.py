"""Append-only JSON Lines files."""

import json
from pathlib import Path
from typing import Any

from teacher_cache.storage.atomic import write_atomic


class Journal:
    """JSON Lines file with one object per line. An incomplete last line, left by a killed process, is ignored."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, **fields: Any) -> None:
        """Append one object."""
        torn = self._path.exists() and not self._path.read_bytes().endswith(b"\n")
        if torn:  # remove the incomplete line, or the new one would continue it
            self.replace(self.read())
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All complete objects; [] if the file does not exist."""
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def replace(self, lines: list[dict[str, Any]]) -> None:
        """Replace the content of the file, e.g. to drop the lines after a checkpoint."""
        write_atomic(self._path, "".join(json.dumps(line) + "\n" for line in lines).encode())
