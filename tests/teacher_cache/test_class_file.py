"""Class files, as people write them."""

from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import pytest
from facts import assert_facts
from tars import image

from teacher_cache.class_file import read_class_names
from teacher_cache.data.index import ShardIndex, load_index
from teacher_cache.errors import ShardError


@pytest.fixture
def names_of(tmp_path: Path) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        path = tmp_path / "names.txt"
        path.write_bytes(text.encode())
        return read_class_names(path)

    return read


@pytest.mark.parametrize(
    "text",
    ["cat\n寿司", "cat\n寿司\n", "\ufeffcat\r\n寿司\r\n", "cat \n 寿司\n\n\n", "cat\r寿司\r", "cat\n寿司\n \t\n"],
)
def test_marks_line_ends_and_empty_last_lines_are_not_names(
    names_of: Callable[[str], tuple[str, ...]], text: str
) -> None:
    assert names_of(text) == ("cat", "寿司")


@pytest.mark.parametrize(
    "text, facts",
    [
        ("", ["empty"]),
        ("\ufeff\r\n", ["empty"]),
        ("cat\n\ndog\n", ["line 2", "empty"]),
        ("n01440764\ttench\n", ["line 1", "tab", r"n01440764\ttench"]),
        ("cat\nguinea\u2028pig\n", ["line 2", r"guinea\u2028pig"]),
        ("guinea\u0085pig\ncat\n", ["line 1", r"guinea\x85pig"]),
        ("cat\x7f\ndog\n", ["line 1", r"cat\x7f"]),
    ],
)
def test_invalid_class_files_name_the_line(
    names_of: Callable[[str], tuple[str, ...]], text: str, facts: list[str]
) -> None:
    with pytest.raises(ShardError) as error:
        names_of(text)
    assert_facts(error.value, "names.txt", *facts)


def test_equal_names_are_reported_and_stay_classes_of_their_own(
    names_of: Callable[[str], tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert names_of("crane\ndog\ncrane\n") == ("crane", "dog", "crane")
    assert_facts(capsys.readouterr().err, "names.txt", "line 3", "line 1", "'crane'")


def test_names_are_normalized_like_names_of_folders(
    names_of: Callable[[str], tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert names_of("cafe\u0301\ndog") == ("café", "dog")
    assert capsys.readouterr().err == ""
    assert names_of("café\ncafe\u0301\n") == ("café", "café")
    assert_facts(capsys.readouterr().err, "line 2", "line 1", "'café'")


def test_packed_folders_match_a_class_file_of_another_normalization(
    limbeck: Callable[..., str], tmp_path: Path
) -> None:
    for name in ("é", "chat"):
        for folder in (tmp_path / "nfc" / name, tmp_path / "nfd" / normalize("NFD", name)):
            folder.mkdir(parents=True)
            (folder / "1.jpg").write_bytes(image(len(str(folder))))
    for form in ("nfc", "nfd"):
        for other in ("NFC", "NFD"):
            out = tmp_path / f"{form}-{other}"
            (tmp_path / "names.txt").write_text(normalize(other, "é\nchat\n"))
            limbeck("pack", tmp_path / form, out, "--classes", tmp_path / "names.txt")
            assert load_index(out).classes == ("é", "chat")


def test_names_with_a_synset_are_kept_whole_and_reported(
    names_of: Callable[[str], tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    names = "n01440764 tench, Tinca tinca", "n01443537 goldfish"
    assert names_of("\n".join(names)) == names
    assert_facts(capsys.readouterr().err, "names.txt", names[0])
    assert names_of("cat\n7up") == ("cat", "7up")
    assert capsys.readouterr().err == ""


def test_index_with_a_class_file_of_a_windows_editor(
    limbeck: Callable[..., str], shards: ShardIndex, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("Müll\n寿司\nहिन्दी\n\n", encoding="utf-8-sig", newline="\r\n")
    limbeck("index", shards.folder, "--out", tmp_path / "index.json", "--classes", tmp_path / "names.txt")
    assert load_index(tmp_path / "index.json").classes == ("Müll", "寿司", "हिन्दी")
