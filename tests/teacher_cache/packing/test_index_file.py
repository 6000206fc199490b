"""`limbeck index` and the file that it writes: what it replaces, keeps and refuses."""

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
from facts import assert_facts
from tars import image, samples, write_tar

from student.data.inputs import open_inputs
from student.recipe import TrainRecipe
from teacher_cache.config import parse_recipe
from teacher_cache.data.index import load_index
from teacher_cache.data.shards import read_shard
from teacher_cache.errors import LimbeckError, RecipeError, ShardError

Limbeck = Callable[..., str]
TRAIN, VAL = "imagenet1k-train-{0000..0001}.tar", "imagenet1k-validation-{00..00}.tar"


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """Train and validation shards in one folder, as in timm/imagenet-1k-wds."""
    folder = tmp_path / "hub"
    write_tar(folder / "imagenet1k-train-0000.tar", samples(range(4)))
    write_tar(folder / "imagenet1k-train-0001.tar", samples(range(4, 8)))
    write_tar(folder / "imagenet1k-validation-00.tar", samples(range(90, 94)))
    return folder


def refusal(limbeck: Limbeck, *words: object) -> str:
    with pytest.raises(LimbeckError) as caught:
        limbeck(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_index_of_other_shards_is_never_replaced(hub: Path, limbeck: Limbeck) -> None:
    limbeck("index", hub / TRAIN)
    before = (hub / "index.json").read_bytes()
    said = refusal(limbeck, "index", hub / VAL)
    out = f"{hub}/imagenet1k-validation.json"
    assert_facts(said, f"'{hub}/index.json'", hub / TRAIN, "imagenet1k-validation-00.tar", f"--out '{out}'")
    assert (hub / "index.json").read_bytes() == before
    limbeck("index", hub / VAL, "--out", out)  # the line's own remedy
    assert load_index(out).rows == 4 and (hub / "index.json").read_bytes() == before
    limbeck("index", hub / VAL, "--out", out)
    assert_facts(refusal(limbeck, "index", hub / TRAIN, "--out", out), f"'{out}'", "imagenet1k-train.json")
    assert load_index(out).rows == 4


def test_a_folder_with_the_shards_of_two_splits_is_refused_with_a_command_for_each(
    hub: Path, limbeck: Limbeck
) -> None:
    said = refusal(limbeck, "index", hub)
    assert not (hub / "index.json").exists()
    for command in re.findall(r"limbeck (index [^;]*)", said):
        limbeck(*shlex.split(command))
    rows = {name: load_index(hub / f"imagenet1k-{name}.json").rows for name in ("train", "validation")}
    assert rows == {"train": 8, "validation": 4}
    limbeck("index", hub / TRAIN, hub / VAL, "--out", hub / "all.json")  # named one by one, they are meant so
    assert load_index(hub / "all.json").rows == 12


def test_proposed_name_is_free(hub: Path, limbeck: Limbeck) -> None:
    limbeck("index", hub / TRAIN)
    (hub / "imagenet1k-validation.json").write_text("[]")
    out = f"{hub}/imagenet1k-validation-2.json"
    assert_facts(refusal(limbeck, "index", hub / VAL), f"--out '{out}'")
    limbeck("index", hub / VAL, "--out", out)
    assert_facts(refusal(limbeck, "index", hub / VAL), f"--out '{out}'")  # an index of these shards is free, too


def test_shards_named_by_number_only_have_a_proposed_name(tmp_path: Path, limbeck: Limbeck) -> None:
    for number in range(4):
        write_tar(tmp_path / f"{number:06d}.tar", samples(range(4 * number, 4 * number + 4)))
    limbeck("index", tmp_path / "{000000..000001}.tar")
    said = refusal(limbeck, "index", tmp_path / "{000002..000003}.tar")
    assert_facts(said, f"--out '{tmp_path}/shards-000002-000003.json'")


def test_grown_set_replaces_its_index(hub: Path, limbeck: Limbeck) -> None:
    limbeck("index", hub / "imagenet1k-train-0000.tar")
    assert load_index(hub).rows == 4
    limbeck("index", hub / TRAIN)
    assert load_index(hub).rows == 8
    assert_facts(refusal(limbeck, "index", hub / "imagenet1k-train-0000.tar"), "imagenet1k-train-0001.tar")


def test_deleted_shards_may_leave_the_index(hub: Path, limbeck: Limbeck) -> None:
    limbeck("index", hub / TRAIN)
    (hub / "imagenet1k-train-0001.tar").unlink()
    said = limbeck("index", hub / "imagenet1k-train-0000.tar")
    assert_facts(said, "1 shard", "imagenet1k-train-0001.tar")
    assert load_index(hub).rows == 4


@pytest.mark.parametrize("name", ["index.json", "train.json"])
def test_index_of_shards_that_are_away_is_not_replaced(
    hub: Path, name: str, tmp_path: Path, limbeck: Limbeck
) -> None:
    limbeck("index", hub / TRAIN, "--out", hub / name)
    before = (hub / name).read_bytes()
    (tmp_path / "archive").mkdir()
    for path in hub.glob("*train*.tar"):
        path.rename(tmp_path / "archive" / path.name)
    said = refusal(limbeck, "index", hub / VAL, "--out", hub / name)
    out = f"{hub}/imagenet1k-validation.json"
    assert_facts(said, f"'{hub}/{name}'", "imagenet1k-train", f"--out '{out}'")
    assert (hub / name).read_bytes() == before
    limbeck("index", hub / VAL, "--out", out)  # the first remedy of the line
    (hub / name).unlink()  # the second one
    limbeck("index", hub / VAL, "--out", hub / name)
    assert load_index(hub / name).rows == 4


def test_proposed_name_is_not_an_index_of_shards_that_are_away(hub: Path, limbeck: Limbeck) -> None:
    limbeck("index", hub / "imagenet1k-train-0000.tar")
    limbeck("index", hub / "imagenet1k-train-0001.tar", "--out", hub / "imagenet1k-validation.json")
    (hub / "imagenet1k-train-0001.tar").unlink()
    assert_facts(refusal(limbeck, "index", hub / VAL), f"--out '{hub}/imagenet1k-validation-2.json'")


def test_moved_or_linked_folder_is_the_same_set(
    hub: Path, tmp_path: Path, limbeck: Limbeck, monkeypatch: pytest.MonkeyPatch
) -> None:
    limbeck("index", hub / TRAIN)
    (tmp_path / "link").symlink_to(hub)
    limbeck("index", tmp_path / "link" / TRAIN)
    monkeypatch.chdir(hub)
    limbeck("index", TRAIN)
    hub.rename(tmp_path / "moved")
    limbeck("index", tmp_path / "moved" / TRAIN)


def test_set_in_another_folder_does_not_replace_an_index(hub: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    limbeck("index", hub / TRAIN)
    write_tar(tmp_path / "other" / "imagenet1k-train-0000.tar", samples(range(20, 24)))
    said = refusal(limbeck, "index", tmp_path / "other", "--out", hub)
    assert_facts(said, f"'{hub}/index.json'", tmp_path / "other" / "imagenet1k-train-0000.tar")


@pytest.mark.parametrize("text", ["", "{}", '{"model": "resnet50"}', '[{"label": 3}]'])
def test_other_peoples_files_are_never_replaced(hub: Path, text: str, tmp_path: Path, limbeck: Limbeck) -> None:
    for path in (tmp_path / "mine.json", hub / "index.json"):
        path.write_text(text)
        assert_facts(refusal(limbeck, "index", hub / TRAIN, "--out", path), f"'{path}'", "--out")
        assert path.read_text() == text


def test_names_are_kept_for_the_same_set_only(hub: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    limbeck("index", hub / "imagenet1k-train-0000.tar", "--classes", tmp_path / "names.txt")
    limbeck("index", hub / TRAIN)
    assert load_index(hub).classes == ("cat", "dog")
    for path in [*hub.glob("*train*"), hub / "index.json"]:
        path.unlink()
    said = limbeck("index", hub / VAL)  # another set in the folder of a deleted one
    assert load_index(hub).classes == ("0", "1") and "--classes" in said


def test_numbers_are_not_kept_as_names(hub: Path, limbeck: Limbeck) -> None:
    limbeck("index", hub / "imagenet1k-train-0000.tar")
    write_tar(hub / "imagenet1k-train-0001.tar", samples(range(30, 34), classes=3))
    limbeck("index", hub / TRAIN)
    assert load_index(hub).classes == ("0", "1", "2")


def test_readme_example_works_as_written(hub: Path, limbeck: Limbeck, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^limbeck (index 'shards/imagenet1k.*)$", readme, re.MULTILINE)
    monkeypatch.chdir(shutil.move(hub, hub.parent / "shards").parent)
    for command in commands:
        words = [word.strip("'") for word in command.partition("#")[0].split()]
        limbeck(*(word.replace("1023}", "0001}").replace("63}", "00}") for word in words))
    outs = [word.strip("'") for command in commands for word in command.split() if word.endswith(".json")]
    assert [load_index(out).rows for out in outs] == [8, 4]


def test_folder_with_several_indexes_names_them(
    hub: Path, tmp_path: Path, limbeck: Limbeck, capsys: pytest.CaptureFixture[str]
) -> None:
    limbeck("index", hub / TRAIN, "--out", hub / "train.json")
    limbeck("index", hub / VAL, "--out", hub / "val.json")
    (hub / "real.json").write_text("[[1], [2]]")  # labels are not an index
    with pytest.raises(ShardError) as caught:
        load_index(hub)
    assert_facts(caught.value, f"'{hub}/index.json'", "train.json", "val.json")
    assert "real.json" not in str(caught.value)
    shutil.copy(hub / "train.json", hub / "index.json")
    assert load_index(hub).rows == 8
    lines = [line for line in capsys.readouterr().err.splitlines() if str(hub) in line]
    assert len(lines) == 1
    assert_facts(lines[0], "train.json", "val.json", "index.json")
    load_index(hub / "val.json")
    assert not capsys.readouterr().err


def test_same_rules_hold_in_a_bucket(hub: Path, new_bucket: Callable[[], str], limbeck: Limbeck) -> None:
    url = f"{new_bucket()}/hub"
    bucket = url.split("/")[2]
    client = boto3.client("s3", region_name="us-east-1")
    for path in hub.iterdir():
        client.upload_file(str(path), bucket, f"hub/{path.name}")
    limbeck("index", f"{url}/{TRAIN}")
    out = f"{url}/imagenet1k-validation.json"
    assert_facts(refusal(limbeck, "index", f"{url}/{VAL}"), f"'{url}/index.json'", f"--out '{out}'")
    limbeck("index", f"{url}/{VAL}", "--out", out)
    assert load_index(url).rows == 8 and load_index(out).rows == 4
    client.delete_object(Bucket=bucket, Key="hub/index.json")
    assert_facts(refusal(limbeck, "index", f"{url}/none-{{0..1}}.tar"), f"'{url}/none-0.tar'")
    with pytest.raises(ShardError) as caught:
        load_index(url)
    assert_facts(caught.value, f"'{url}/index.json'", "imagenet1k-validation.json")
    data = (hub / "imagenet1k-train-0000.tar").read_bytes()
    client.put_object(Bucket=bucket, Key="hub/imagenet1k-validation-00.tar", Body=data[:3000])
    with pytest.raises(ShardError) as shorter:
        read_shard(load_index(out), 0)
    assert_facts(shorter.value, f"'{url}/imagenet1k-validation-00.tar'", 3000, 20480)


@pytest.fixture
def recipe(recipe_text: Callable[..., str], cache_recipe: object) -> Callable[..., TrainRecipe]:
    """A teacher's recipe for two locations of shards."""
    import tomllib

    def make(train: object, val: object) -> TrainRecipe:
        tables = tomllib.loads(recipe_text("teacher", shards=train))
        tables["data"]["val"] = str(val)
        return parse_recipe(tables, TrainRecipe, "the test's recipe")

    return make


def test_validation_set_may_have_some_classes_only(
    tmp_path: Path, limbeck: Limbeck, recipe: Callable[..., TrainRecipe]
) -> None:
    write_tar(tmp_path / "train" / "0.tar", samples(range(6), classes=3))
    write_tar(tmp_path / "val" / "0.tar", samples(range(6, 10), classes=2))
    limbeck("index", tmp_path / "train")
    limbeck("index", tmp_path / "val")
    open_inputs(recipe(tmp_path / "train", tmp_path / "val"))  # mere numbers: the labels mean the same
    with pytest.raises(RecipeError) as caught:
        open_inputs(recipe(tmp_path / "val", tmp_path / "train"))
    assert_facts(caught.value, "class 2", "data.train", "data.val", f"limbeck index '{tmp_path}/val/0.tar'")


def test_named_classes_are_given_by_the_command_in_the_message(
    tmp_path: Path, limbeck: Limbeck, recipe: Callable[..., TrainRecipe]
) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\nemu\n")
    write_tar(tmp_path / "train" / "0.tar", samples(range(6), classes=3))
    for number in range(2):  # one class only, and keys that begin again
        write_tar(tmp_path / "val" / f"{number}.tar", [("a.jpg", image(number)), ("a.cls", b"%d" % number)])
    limbeck("index", tmp_path / "train", "--classes", tmp_path / "names.txt")
    limbeck("index", tmp_path / "val", "--key-prefix", "shard")
    with pytest.raises(RecipeError) as caught:
        open_inputs(recipe(tmp_path / "train", tmp_path / "val"))
    assert_facts(caught.value, "class 0", "'cat'", "'0'")
    found = re.search(r"run: limbeck (index .*?);", str(caught.value))
    assert found
    limbeck(*(word.strip("'") for word in found.group(1).split()))
    assert load_index(tmp_path / "val").format.key_prefix == "shard"
    assert open_inputs(recipe(tmp_path / "train", tmp_path / "val")).val.classes == ("cat", "dog", "emu")


def test_absent_classes_are_one_line(tmp_path: Path, limbeck: Limbeck) -> None:
    write_tar(tmp_path / "one" / "0.tar", samples(range(6), classes=3, first=1))
    assert_facts(limbeck("index", tmp_path / "one"), "1 of 4 classes: 0;", "begin with 1")
    gaps = [("a.jpg", image(1)), ("a.cls", b"0"), ("b.jpg", image(2)), ("b.cls", b"7")]
    write_tar(tmp_path / "gaps" / "0.tar", gaps)
    assert_facts(limbeck("index", tmp_path / "gaps"), "6 of 8 classes: 1, 2, 3 and 3 more")
    write_tar(tmp_path / "all" / "0.tar", samples(range(4)))
    assert "no images" not in limbeck("index", tmp_path / "all")


def test_one_class_needs_a_class_file(tmp_path: Path, limbeck: Limbeck) -> None:
    write_tar(tmp_path / "train" / "0.tar", samples(range(4)))
    write_tar(tmp_path / "dogs" / "0.tar", samples(range(4, 8), classes=1, first=1))
    assert_facts(refusal(limbeck, "index", tmp_path / "dogs"), "class 1", "--classes")
    limbeck("index", tmp_path / "train")
    limbeck("index", tmp_path / "dogs", "--classes", tmp_path / "train" / "index.json")
    assert load_index(tmp_path / "dogs").classes == ("0", "1")
    limbeck(
        "index",
        tmp_path / "dogs",
        "--out",
        os.fspath(tmp_path / "dogs"),
        "--classes",
        tmp_path / "train/index.json",
    )
    (tmp_path / "names.txt").write_text("dog\n")
    said = refusal(limbeck, "index", tmp_path / "train", "--classes", tmp_path / "names.txt")
    assert_facts(said, "0 to 1", "1 class name")


def test_rows_left_out_before_are_mentioned(tmp_path: Path, limbeck: Limbeck) -> None:
    write_tar(tmp_path / "0.tar", [*samples(range(4)), ("x.jpg", b"no image"), ("x.cls", b"0")])
    limbeck("index", tmp_path, "--skip-broken")
    before = json.loads((tmp_path / "index.json").read_text())
    assert before["shardlist"][0]["skipped"][0]["sample"] == 4
    assert_facts(limbeck("index", tmp_path), "1 sample", "--skip-broken")
