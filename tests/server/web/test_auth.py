"""Tests of files of API keys."""

from pathlib import Path

import pytest
from facts import assert_facts

from server.settings import Settings
from server.web.auth import key_digest, read_keys
from teacher_cache.errors import LimbeckError


def test_a_file_has_one_key_per_line(tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("# ours\nfirst \n\nwith a space\n", encoding="utf-8")
    assert read_keys(Settings(api_keys=keys)) == [key_digest(b"first"), key_digest(b"with a space")]


@pytest.mark.parametrize("text", ["", "# none\n"])
def test_a_file_without_keys_is_refused(text: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text(text, encoding="utf-8")
    with pytest.raises(LimbeckError) as raised:
        read_keys(Settings(api_keys=keys))
    assert_facts(raised.value, "--api-keys", keys)
