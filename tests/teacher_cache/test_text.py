"""Text that people write, in any editor's encoding."""

import pytest
from facts import assert_facts

from teacher_cache.errors import ShardError
from teacher_cache.text import decode_text

TEXT = "# für 寿司 🍣\nlr = 1\n"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.replace("\n", "\r\n").encode("utf-8-sig"),
        TEXT.replace("\n", "\r").encode(),
        b"".join(line.encode("utf-8-sig") for line in TEXT.splitlines(keepends=True)),  # concatenated files
    ],
)
def test_marks_and_line_ends_of_any_editor_are_removed(data: bytes) -> None:
    assert decode_text(data, "recipe 'a.toml'", ShardError) == TEXT


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_named_with_a_remedy(encoding: str) -> None:
    with pytest.raises(ShardError) as error:
        decode_text(TEXT.encode(encoding), "recipe 'a.toml'", ShardError)
    assert_facts(error.value, "recipe 'a.toml'", "UTF-16" if "16" in encoding else "UTF-32", "UTF-8", "Out-File")
    assert "\n" not in str(error.value)


def test_other_encodings_are_refused_with_their_first_line() -> None:
    with pytest.raises(ShardError) as error:
        decode_text("[a]\nname = 'Müll'\n".encode("latin-1"), "recipe 'a.toml'", ShardError)
    assert_facts(error.value, "recipe 'a.toml'", "line 2", "0xfc", "UTF-8")


def test_an_empty_file_is_empty_text() -> None:
    assert decode_text(b"", "x", ShardError) == ""
