"""Options of the student's commands."""

from collections.abc import Callable

import pytest
from facts import assert_facts

from teacher_cache.errors import RecipeError


@pytest.mark.parametrize("url", ["s3://bucket/run", "s3:/bucket/run", "memory://run"])
def test_train_refuses_a_url_as_out_and_shows_it_as_given(limbeck: Callable[..., str], url: str) -> None:
    with pytest.raises(RecipeError) as raised:
        limbeck("train", "recipe.toml", "--out", url)
    assert_facts(raised.value, f"--out '{url}'")
