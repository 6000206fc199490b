"""What a cache remembers of its teacher's examination."""

import json
from dataclasses import dataclass
from typing import Any

from teacher_cache.storage.atomic import json_bytes
from teacher_cache.storage.store import Store

SCORE_NAME = "teacher.json"
"""Beside the cache's manifest, so that a teacher is examined once. Jobs that begin together each do it."""


@dataclass(frozen=True)
class TeacherScore:
    """about: teacher, images and pixels, by which a result is known again. accuracy: top-1 in percent."""

    about: dict[str, Any]
    accuracy: float
    images: int

    def describe(self, teacher: str) -> str:
        """The result in a phrase for a person."""
        return f"teacher '{teacher}' is right on {self.accuracy:.2f} % of the {self.images:,} images of data.val"

    def save(self, store: Store) -> None:
        plain = {"about": self.about, "accuracy": self.accuracy, "images": self.images}
        store.put(SCORE_NAME, json_bytes(plain))


def load_score(store: Store) -> TeacherScore | None:
    """The examination that a cache's folder keeps; None where there is none that can be read."""
    try:
        return TeacherScore(**json.loads(store.get(SCORE_NAME)))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None
