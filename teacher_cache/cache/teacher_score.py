"""The teacher's validation accuracy, stored with a cache."""

import json
from dataclasses import dataclass
from typing import Any

from teacher_cache.storage.atomic import json_bytes
from teacher_cache.storage.store import Store

SCORE_NAME = "teacher.json"
"""Stored in the cache, so that a teacher is evaluated once. Jobs that start together each evaluate it."""


@dataclass(frozen=True)
class TeacherScore:
    """about: teacher, images and image size that the score is valid for. accuracy: top-1 in percent."""

    about: dict[str, Any]
    accuracy: float
    images: int

    def describe(self, teacher: str) -> str:
        """One line for the log."""
        return f"teacher '{teacher}': {self.accuracy:.2f} % top-1 accuracy on {self.images:,} images of data.val"

    def save(self, store: Store) -> None:
        plain = {"about": self.about, "accuracy": self.accuracy, "images": self.images}
        store.put(SCORE_NAME, json_bytes(plain))


def load_score(store: Store) -> TeacherScore | None:
    """The score stored in a cache; None if it is missing or invalid."""
    try:
        return TeacherScore(**json.loads(store.get(SCORE_NAME)))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None
