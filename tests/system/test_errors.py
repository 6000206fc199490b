"""User errors: one line with what, where and what to do, and exit status 2."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from facts import assert_facts

from server import cli
from server.cli import main
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.data.index import IMAGE_SUFFIXES, ShardIndex
from teacher_cache.data.loader import load
from teacher_cache.data.shards import read_shard
from teacher_cache.errors import RecipeError, RunLockedError, UnavailableError
from teacher_cache.packing.pack import pack

Fails = Callable[..., str]
Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command's entry point, as a shell does; returns the exit status."""

    def call(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["limbeck", *map(str, words)])
        monkeypatch.setenv("PYTHONWARNINGS", "")  # main changes it
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return call


@pytest.fixture
def fails(run: Run, capfd: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that must exit with 2; returns its only line, including output of worker processes."""

    def call(*words: object) -> str:
        capfd.readouterr()
        status = run(*words)
        out, errors = capfd.readouterr()
        assert status == 2, errors
        assert out == ""
        assert errors.startswith("limbeck: ") and errors.endswith("\n")
        assert errors.count("\n") == 1, errors
        return errors.removeprefix("limbeck: ").rstrip("\n")

    return call


@pytest.fixture
def student(recipe_text: Callable[..., str], shards: ShardIndex, cache: TargetCache, tmp_path: Path) -> Path:
    path = tmp_path / "student.toml"
    path.write_text(recipe_text("student", shards=shards.folder, cache=cache.where))
    return path


@pytest.fixture
def cache_recipe_file(
    recipe_text: Callable[..., str], shards: ShardIndex, teacher_run: Path, tmp_path: Path
) -> Path:
    shutil.copytree(shards.folder, tmp_path / "shards")
    path = tmp_path / "cache.toml"
    places = {"shards": tmp_path / "shards", "teacher": teacher_run, "cache": tmp_path / "cache.zarr"}
    path.write_text(recipe_text("cache", **places))
    return path


def crop(photos: Path, name: str) -> Path:
    return next((photos / name).glob("*.jpg"))


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        ("serve x --port 99999", ["--port", "99999", "65535", "limbeck serve --help"]),
        ("serve x --prot 80", ["--prot", "--port", "limbeck serve --help"]),
        ("cache build --nonsense", ["--nonsense", "limbeck cache build --help"]),
        ("cache build r.toml --set", ["--set", "limbeck cache --help"]),
        ("study compare a.toml", ["'B'", "limbeck study compare --help"]),
        ("train a.toml b.toml", ["b.toml", "limbeck train --help"]),
        ("servee x", ["'servee'", "'serve'", "limbeck --help"]),
    ],
)
def test_invalid_command_line_is_one_line_error(fails: Fails, words: str, facts: list[str]) -> None:
    assert_facts(fails(*words.split()), *facts)


def test_help_and_version_are_printed(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert (run("serve", "--help"), run("--version")) == (0, 0)
    assert run() == run("cache") == 2  # without a command the help lists all commands
    out, errors = capfd.readouterr()
    assert errors == ""
    assert_facts(out, "--access-log", "build", "extend", "status", "verify", "show")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--help", "--version", "recipes", "recipes cifar10_student"])
def test_closed_stdout_exits_with_141_silently(words: str, unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "server.cli", *words.split()]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


class Killed:
    """Kills the worker that reads it."""

    def items(self, worker: int, workers: int) -> Iterator[int]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield 1


@pytest.fixture
def status_and_stderr(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """Runs a command that does one thing; returns its exit status and its standard error."""

    def call(act: Callable[[], object]) -> tuple[int, str]:
        app = typer.Typer()
        app.callback()(lambda: None)
        app.command("act")(lambda: act() and None)
        monkeypatch.setattr(cli, "app", app)
        status = run("act")
        out, errors = capfd.readouterr()
        assert out == ""
        return status, errors

    return call


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("act", "status", "facts"),
    [
        (raising(RecipeError("recipe 'a': b")), 2, "recipe 'a': b"),
        (raising(UnavailableError("store 'a' is down")), 75, "store 'a' is down"),
        (raising(RunLockedError("run 'a' is held")), 75, "run 'a' is held"),
        (raising(PermissionError(errno.EACCES, "Permission denied", "/a")), 2, "'/a': Permission denied"),
        (raising(OSError(errno.ENOSPC, "No space left on device", "/a")), 75, "'/a': No space left on device"),
        (raising(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")), 75, "Connection refused"),
        (raising(EOFError("truncated")), 2, "truncated"),
        (raising(KeyboardInterrupt()), 130, "interrupted"),
        (lambda: list(load(Killed(), 1)), 2, "SIGKILL"),
    ],
)
def test_each_kind_of_error_has_its_exit_status_and_one_line(
    status_and_stderr: Callable[..., Any], act: Callable[[], object], status: int, facts: str
) -> None:
    found, errors = status_and_stderr(act)
    assert found == status and facts in errors
    assert errors.startswith("limbeck: ") and errors.count("\n") == 1 and errors.endswith("\n")


def test_a_command_may_set_its_own_exit_status_silently(status_and_stderr: Callable[..., Any]) -> None:
    assert status_and_stderr(lambda: None) == (0, "")
    assert status_and_stderr(raising(typer.Exit(3))) == (3, "")
    assert status_and_stderr(raising(SystemExit(75))) == (75, "")  # another rank has reported the reason


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("mistake"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),  # not of standard output
        RuntimeError("mistake"),
    ],
)
def test_an_internal_error_keeps_its_traceback(status_and_stderr: Callable[..., Any], error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        status_and_stderr(raising(error))
    assert raised.value is error


def test_a_source_without_images(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "source" / "cat").mkdir(parents=True)
    (tmp_path / "source" / "cat" / "notes.txt").write_text("no image")
    assert_facts(fails("pack", tmp_path / "source", tmp_path / "out"), tmp_path / "source", *IMAGE_SUFFIXES)


def test_one_class_only(fails: Fails, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "logo", tmp_path / "source" / "logo")
    assert_facts(fails("pack", tmp_path / "source", tmp_path / "out"), "class", 0)
    assert not (tmp_path / "out" / "index.json").exists()


def test_duplicate_key(fails: Fails, shards: ShardIndex, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copy(shards.url(0), tmp_path / f"{name}.tar")
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes() + bytes(10240))  # more padding
    key = read_shard(shards, 0)[0].key
    assert_facts(fails("index", tmp_path), key, tmp_path / "a.tar", tmp_path / "b.tar")


def test_an_image_that_cannot_be_read(fails: Fails, photos: Path, tmp_path: Path) -> None:
    for name in ("hopper", "logo"):
        (tmp_path / "source" / name).mkdir(parents=True)
        shutil.copy(crop(photos, name), tmp_path / "source" / name / "1.jpg")
    (tmp_path / "source" / "logo" / "2.jpg").write_bytes(crop(photos, "logo").read_bytes()[:200])
    assert_facts(fails("pack", tmp_path / "source", tmp_path / "out"), "logo/2.jpg", "--skip-broken")


def test_a_missing_shard(fails: Fails, cache_recipe_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "shards" / "000001.tar"
    path.unlink()
    assert_facts(fails("cache", "build", cache_recipe_file), path)


def test_a_shard_that_was_cut_short(fails: Fails, cache_recipe_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "shards" / "000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3000])
    assert_facts(fails("cache", "build", cache_recipe_file), path, len(whole) - 3000, len(whole))


def test_shard_that_changed_after_the_cache_was_built(
    fails: Fails, student: Path, shards: ShardIndex, tmp_path: Path
) -> None:
    shutil.copytree(shards.folder, tmp_path / "shards")
    victim, other = read_shard(shards, 0)[2], read_shard(shards, 0)[3]
    path = tmp_path / "shards" / shards.shards[0].url
    short, long = sorted((victim.image, other.image), key=len)
    path.write_bytes(path.read_bytes().replace(long, short.ljust(len(long), b"\0")))
    run = tmp_path / "run"
    assert_facts(fails("train", student, "--out", run, "--set", f'data.train="{tmp_path / "shards"}"'), path)
    assert_facts(fails("export", run, tmp_path / "bundle"), run, "limbeck train")
    assert_facts(fails("evaluate", run, shards.folder), run, "limbeck train")
    assert_facts(fails("serve", run, "--port", 0), run, "limbeck train")


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ("optim.wieght_decay=0.1", ["optim.wieght_decay", "weight_decay"]),
        ("train.batch=8.5", ["train.batch", "8.5"]),
        ("train.batch=big", ["train.batch", "big"]),
        ("optim=1", ["optim", "1"]),
        ("train.batch", ["--set", "train.batch"]),
        ("model.name=deit_tinny_patch16_224", ["model.name", "deit_tinny_patch16_224", "deit_tiny_"]),
        (
            "model.name=deit_tiny_patch16_224",
            ["model.name", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"],
        ),
        ("model.name=resnet18", ["resnet18", "--set model.args.img_size=", "--set model.args="]),
        ("optim.name=adamq", ["optim.name", "adamq", "nadam"]),
        ("cache.teacher=regnety_160", ["teacher.model", "resnet10t", "regnety_160"]),
        ("cache.path=nowhere.zarr", ["nowhere.zarr", "limbeck cache build"]),
        ("data.val=nowhere", ["nowhere"]),
        ("model.args.img_size=48", ["views.size", "32", "48"]),
        ("train.batch=48", ["40", "48"]),
    ],
)
def test_invalid_training_recipe(
    fails: Fails, student: Path, tmp_path: Path, change: str, facts: list[str]
) -> None:
    assert_facts(fails("train", student, "--out", tmp_path / "run", "--set", change), *facts)
    assert not (tmp_path / "run").exists()


def test_first_three_recipe_errors_are_listed(fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "bare.toml"
    path.write_text('[data]\ntrain = "shards"\n')
    assert_facts(fails("train", path), path, 7, "data.val", "model", "loss", 4)


def test_a_cache_of_other_views(fails: Fails, student: Path, tmp_path: Path) -> None:
    views = 'views={size=32, hflip=0.25, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25, mixup=0.8, cutmix=1.0}'
    assert_facts(fails("train", student, "--out", tmp_path / "run", "--set", views), "views.hflip", 0.5, 0.25)


def test_a_cache_of_other_shards(
    fails: Fails, student: Path, photos: Path, shards: ShardIndex, tmp_path: Path
) -> None:
    other = pack(photos, tmp_path / "other", shard_rows=16, seed=3)
    message = fails("train", student, "--out", tmp_path / "run", "--set", f'data.train="{other.folder}"')
    assert_facts(message, "shards.md5", 3, 0, shards.shards[0].md5, other.shards[0].md5)


def test_cache_started_by_another_recipe(fails: Fails, run: Run, cache_recipe_file: Path, tmp_path: Path) -> None:
    assert run("cache", "build", cache_recipe_file) == 0
    message = fails("cache", "build", cache_recipe_file, "--set", "views.hflip=0.25", "--set", "cache.seeds=4")
    assert_facts(message, tmp_path / "cache.zarr", "views.hflip", 0.5, 0.25, "seeds", 2, 4)


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        (["cache.sedes=4"], ["cache.sedes", "seeds"]),
        (["cache.seeds=all"], ["cache.seeds", "all"]),
        (['teacher.run=""', "teacher.model=resnet1O1"], ["teacher.model", "resnet1O1", "resnet101"]),
        (["teacher.run=nowhere"], ["teacher.run", "nowhere"]),
    ],
)
def test_invalid_cache_recipe(
    fails: Fails, cache_recipe_file: Path, tmp_path: Path, changes: list[str], facts: list[str]
) -> None:
    message = fails(
        "cache", "build", cache_recipe_file, *(word for change in changes for word in ("--set", change))
    )
    assert_facts(message, *facts)
    assert not (tmp_path / "cache.zarr").exists()


@pytest.mark.parametrize("command", [("train",), ("cache", "build")])
def test_missing_recipe(fails: Fails, command: tuple[str, ...]) -> None:
    for name in ("nowhere.toml", "a:fire:.toml", "[red]a.toml"):  # rich would interpret them as markup
        assert_facts(fails(*command, name), name, "limbeck recipes")
    assert_facts(fails(*command, "."), "'.'", "TOML")


def test_a_bundle_misused(fails: Fails, run: Run, student: Path, shards: ShardIndex, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    assert run("train", student, "--out", alone, "--set", "loss.distillation=none") == 0
    assert_facts(fails("export", alone, tmp_path / "bundle", "--fusion", "softmax-sum"), "softmax-sum", "class")
    assert_facts(fails("train", student, "--out", alone), "loss.distillation", "'none'", "'hard'", "--out")
    message = fails("evaluate", alone, shards.folder, "--predictions", tmp_path / "no" / "rows.jsonl")
    assert_facts(message, "--predictions", f"'{tmp_path}/no/rows.jsonl'", f"'{tmp_path}/no'")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = fails("serve", alone, "--port", port, "--device", "cpu")
    assert_facts(message, port, "127.0.0.1", "--port")
    assert run("export", alone, tmp_path / "bundle") == 0
    assert_facts(fails("export", alone, tmp_path / "bundle"), tmp_path / "bundle")


def test_folder_that_cannot_be_created(fails: Fails, student: Path) -> None:
    message = fails("train", student, "--out", student / "run")  # the recipe is a file, not a folder
    assert_facts(message, student / "run", os.strerror(errno.ENOTDIR))
