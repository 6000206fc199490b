"""Labels of shards: class names found in them, and messages for labels that cannot be used."""

from collections.abc import Callable, Sequence
from pathlib import Path

from facts import assert_facts
from indexed import refusal, rows_of
from tars import image, samples, write_tar

from teacher_cache.data.index import load_index

Limbeck = Callable[..., str]


def named_samples(names: Sequence[str], suffix: str = "txt") -> list[tuple[str, bytes]]:
    files = [((f"{n}.jpg", image(n)), (f"{n}.{suffix}", name.encode())) for n, name in enumerate(names)]
    return [file for pair in files for file in pair]


def test_class_names_without_a_file_are_the_sorted_names_of_all_shards(tmp_path: Path, limbeck: Limbeck) -> None:
    write_tar(tmp_path / "0.tar", named_samples(["emu\n", "e\u0301", "dog"]))
    write_tar(tmp_path / "1.tar", [(f"b{name}", data) for name, data in named_samples(["cat ", "\u00e9", "emu"])])
    said = limbeck("index", tmp_path, "--label", "txt")
    assert_facts(said, "4 class names", "cat, dog, emu and 1 more", "6 images of 4 classes")
    index = load_index(tmp_path)
    assert index.classes == ("cat", "dog", "emu", "\u00e9")
    assert [label for _, _, label in rows_of(tmp_path)] == [2, 3, 1, 0, 3, 2]
    limbeck("index", tmp_path, "--label", "txt", "--skip-broken")
    assert load_index(tmp_path) == index
    write_tar(tmp_path / "2.tar", [(f"c{name}", data) for name, data in named_samples(["ant"])])
    said = refusal(limbeck, "index", tmp_path, "--label", "txt")  # it would change the numbers of the others
    assert_facts(said, "'ant'", "4 class names", "--classes")
    assert "--skip-broken" not in said


def test_names_that_cannot_be_classes_are_refused(tmp_path: Path, limbeck: Limbeck) -> None:
    write_tar(tmp_path / "mixed" / "0.tar", named_samples(["cat", "3", "dog"]))
    said = refusal(limbeck, "index", tmp_path / "mixed", "--label", "txt")
    assert_facts(said, "'0'", "'cat'", "'1'", "3", f"'{tmp_path}/mixed/0.tar'", "--classes")
    write_tar(tmp_path / "captions" / "0.tar", named_samples([f"photo {n}" for n in range(120)]))
    said = refusal(limbeck, "index", tmp_path / "captions", "--label", "txt")
    assert_facts(said, "120 samples", "120 different", "photo 0", "--label", "--classes")
    write_tar(tmp_path / "long" / "0.tar", named_samples(["cat", "a photo of " * 20]))
    assert_facts(refusal(limbeck, "index", tmp_path / "long", "--label", "txt"), "'1'", "--classes")
    write_tar(tmp_path / "one" / "0.tar", named_samples(["cat", "cat"]))
    assert_facts(refusal(limbeck, "index", tmp_path / "one", "--label", "txt"), "'cat'", "two classes")


def test_label_in_the_default_file_is_named(tmp_path: Path, limbeck: Limbeck) -> None:
    write_tar(tmp_path / "0.tar", [*samples(range(4)), ("x.json", b'{"width": 1, "category": 3}')])
    said = refusal(limbeck, "index", tmp_path, "--label", ".txt")
    assert_facts(said, "'0'", ".txt", ".cls", "--label cls")
    write_tar(tmp_path / "1.tar", [("a.jpg", image(0)), ("a.json", b'{"width": 1, "category": 3}')])
    said = refusal(limbeck, "index", tmp_path / "1.tar", "--label", "json:label")
    assert_facts(said, "'a'", "'label'", "--label json:category")
    assert "--skip-broken" not in said


def test_samples_of_many_files_are_named_in_a_short_line(tmp_path: Path, limbeck: Limbeck) -> None:
    write_tar(tmp_path / "0.tar", samples(range(500), key="img.v{}"))
    said = refusal(limbeck, "index", tmp_path)
    assert_facts(said, "'img'", ".v0.jpg", "997 more", "--dotted-keys")
    assert len(said) < len(str(tmp_path)) + 300
    write_tar(tmp_path / "0.tar", [("img.jpg", image(0)), *((f"img.{n}.jpg", b"") for n in range(500))])
    said = refusal(limbeck, "index", tmp_path)
    assert_facts(said, "'img'", ".cls")
    assert len(said) < len(str(tmp_path)) + 300
