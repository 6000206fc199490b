"""What `limbeck index` refuses, and the rows of what it accepts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from teacher_cache.data.index import load_index
from teacher_cache.data.shards import read_shard
from teacher_cache.errors import LimbeckError


def refusal(limbeck: Callable[..., str], *words: object) -> str:
    """The one line with which the command refuses these words."""
    with pytest.raises(LimbeckError) as caught:
        limbeck(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows_of(folder: Path) -> list[tuple[str, bytes, int]]:
    """Key, image and label of every row of an indexed folder."""
    index = load_index(folder)
    records = [record for number in range(len(index.shards)) for record in read_shard(index, number)]
    return [(record.key, record.image, record.label) for record in records]
