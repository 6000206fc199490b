"""What a user sees of a mistake: one line that says what, where and what to do, and status 2."""

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
from torch.utils.data import IterableDataset, get_worker_info

from server import cli
from server.cli import main
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.loader import load
from teacher_cache.data.shards import read_shard
from teacher_cache.errors import RecipeError, RunLockedError, UnavailableError
from teacher_cache.packing.pack import pack

Fails = Callable[..., str]
Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Goes through the front door, as the shell does; returns the exit status."""

    def call(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["limbeck", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return call


@pytest.fixture
def fails(run: Run, capfd: pytest.CaptureFixture[str]) -> Fails:
    """Runs a command that must fail with status 2; returns its one line, worker processes' words included."""

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
    """A recipe that would train, were it not for what a test changes."""
    path = tmp_path / "student.toml"
    path.write_text(recipe_text("student", shards=shards.folder, cache=cache.where))
    return path


@pytest.fixture
def judging(recipe_text: Callable[..., str], shards: ShardIndex, teacher_run: Path, tmp_path: Path) -> Path:
    """A recipe that would build a cache of a copy of the shards, with a worker process."""
    shutil.copytree(shards.folder, tmp_path / "shards")
    path = tmp_path / "cache.toml"
    places = {"shards": tmp_path / "shards", "teacher": teacher_run, "cache": tmp_path / "cache.zarr"}
    path.write_text(recipe_text("cache", **places))
    return path


def crop(photos: Path, name: str) -> Path:
    return next((photos / name).glob("*.jpg"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("serve x --port 99999", "serve: Invalid value for '--port': Input should be less than or equal to "),
        ("serve x --port 99999", "65535, not '99999'; see limbeck serve --help"),
        ("serve x --prot 80", "serve: No such option: --prot (Possible options: --host, --port"),
        ("cache build --nonsense", "cache build: No such option: --nonsense; see limbeck cache build --help"),
        ("cache build r.toml --set", "cache: Option '--set' requires an argument; see limbeck cache --help"),
        ("study compare a.toml", "study compare: Missing argument 'B'; see limbeck study compare --help"),
        ("train a.toml b.toml", "train: Got unexpected extra argument(s) (b.toml); see limbeck train --help"),
        ("servee x", "No such command 'servee'. Did you mean 'serve'?; see limbeck --help"),
    ],
)
def test_a_command_line_that_cannot_be(fails: Fails, words: str, told: str) -> None:
    assert told in fails(*words.split())


def test_a_command_line_that_asks_for_help_is_helped(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert (run("serve", "--help"), run("--version")) == (0, 0)
    assert run() == run("cache") == 2  # they lack a command; the help names those there are
    out, errors = capfd.readouterr()
    assert errors == "" and "--access-log" in out and "Draw a contact sheet" in out


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--help", "--version", "recipes", "recipes cifar10_student"])
def test_output_that_nobody_reads_any_more_is_status_141_without_a_word(words: str, unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "server.cli", *words.split()]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


class Killed(IterableDataset[int]):
    """Read by a worker process, it is killed."""

    def __iter__(self) -> Iterator[int]:
        assert get_worker_info() is not None
        os.kill(os.getpid(), signal.SIGKILL)
        yield 1


@pytest.fixture
def ends(run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command that does one thing; returns its exit status and what it said."""

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


def throw(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("act", "status", "facts"),
    [
        (throw(RecipeError("recipe 'a': b")), 2, "recipe 'a': b"),
        (throw(UnavailableError("store 'a' is down")), 75, "store 'a' is down"),
        (throw(RunLockedError("run 'a' is held")), 75, "run 'a' is held"),
        (throw(PermissionError(errno.EACCES, "Permission denied", "/a")), 2, "'/a': Permission denied"),
        (throw(OSError(errno.ENOSPC, "No space left on device", "/a")), 75, "'/a': No space left on device"),
        (throw(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")), 75, "Connection refused"),
        (throw(EOFError("truncated")), 2, "truncated"),
        (throw(KeyboardInterrupt()), 130, "interrupted"),
        (lambda: list(load(Killed(), 1)), 2, "DataLoader worker (pid"),
    ],
)
def test_each_kind_of_error_has_its_exit_status_and_one_line(
    ends: Callable[..., Any], act: Callable[[], object], status: int, facts: str
) -> None:
    found, said = ends(act)
    assert found == status and facts in said
    assert said.startswith("limbeck: ") and said.count("\n") == 1 and said.endswith("\n")


def test_a_command_may_end_with_a_status_of_its_own_and_says_nothing(ends: Callable[..., Any]) -> None:
    assert ends(lambda: None) == (0, "")
    assert ends(throw(typer.Exit(3))) == (3, "")
    assert ends(throw(SystemExit(75))) == (75, "")  # another rank has said why


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("mistake"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),  # not of standard output
        RuntimeError("Caught RuntimeError in DataLoader worker process 0."),
    ],
)
def test_a_mistake_of_limbeck_keeps_its_traceback(ends: Callable[..., Any], error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        ends(throw(error))
    assert raised.value is error


def test_a_source_without_images(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "source" / "cat").mkdir(parents=True)
    (tmp_path / "source" / "cat" / "notes.txt").write_text("no image")
    assert f"no images in '{tmp_path / 'source'}'" in fails("pack", tmp_path / "source", tmp_path / "out")


def test_one_class_only(fails: Fails, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "logo", tmp_path / "source" / "logo")
    told = fails("pack", tmp_path / "source", tmp_path / "out")
    assert told == "every image has the class 0; a classifier needs two classes or more"


def test_a_key_that_stands_twice(fails: Fails, shards: ShardIndex, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copy(shards.url(0), tmp_path / f"{name}.tar")
    key = read_shard(shards, 0)[0].key
    assert fails("index", tmp_path) == (
        f"key '{key}' stands twice: in '{tmp_path / 'a.tar'}' and in '{tmp_path / 'b.tar'}'; keys must be unique"
    )


def test_an_image_that_cannot_be_read(fails: Fails, photos: Path, tmp_path: Path) -> None:
    for name in ("hopper", "logo"):
        (tmp_path / "source" / name).mkdir(parents=True)
        shutil.copy(crop(photos, name), tmp_path / "source" / name / "1.jpg")
    (tmp_path / "source" / "logo" / "2.jpg").write_bytes(crop(photos, "logo").read_bytes()[:200])
    told = fails("pack", tmp_path / "source", tmp_path / "out")
    assert told.startswith("image 'logo/2.jpg' is broken: ") and told.endswith(
        "; remove it, or pass --skip-broken"
    )


def test_a_missing_shard(fails: Fails, judging: Path, tmp_path: Path) -> None:
    path = tmp_path / "shards" / "000001.tar"
    path.unlink()
    assert f"shard '{path}' is missing" in fails("cache", "build", judging)


def test_a_shard_that_was_cut_short(fails: Fails, judging: Path, tmp_path: Path) -> None:
    path = tmp_path / "shards" / "000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3000])
    told = fails("cache", "build", judging)
    assert told.startswith(f"shard '{path}' has {len(whole) - 3000} bytes where the index says {len(whole)}; ")


def test_an_image_that_changed_since_the_teacher_saw_it(
    fails: Fails, student: Path, shards: ShardIndex, tmp_path: Path
) -> None:
    shutil.copytree(shards.folder, tmp_path / "shards")
    victim, other = read_shard(shards, 0)[2], read_shard(shards, 0)[3]
    path = tmp_path / "shards" / shards.shards[0].url
    short, long = sorted((victim.image, other.image), key=len)
    path.write_bytes(path.read_bytes().replace(long, short.ljust(len(long), b"\0")))
    told = fails("train", student, "--out", tmp_path / "run", "--set", f'data.train="{tmp_path / "shards"}"')
    assert f"shard '{path}' has changed since it was indexed; restore it, or index the shards anew" in told
    assert fails("export", tmp_path / "run", tmp_path / "bundle") == (
        f"run '{tmp_path / 'run'}' is not finished; finish it with: limbeck train RECIPE"
    )
    assert fails("evaluate", tmp_path / "run", shards.folder).endswith("limbeck train RECIPE")
    assert fails("serve", tmp_path / "run", "--port", 0).endswith("limbeck train RECIPE")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optim.wieght_decay=0.1", "unknown key 'optim.wieght_decay', did you mean 'weight_decay'?"),
        ("train.batch=8.5", "train.batch = 8.5: input should be a valid integer"),
        ("train.batch=big", 'train.batch = "big": input should be a valid integer'),
        ("optim=1", "optim = 1: "),
        ("train.batch", "--set 'train.batch' is not table.key=value, e.g. --set optim.lr=1e-3"),
        (
            "model.name=deit_tinny_patch16_224",
            "model.name = 'deit_tinny_patch16_224': timm has no such model; nearest are deit_tiny_",
        ),
        (
            "model.name=deit_tiny_patch16_224",
            "'deit_tiny_patch16_224' has no distillation head; "
            'use model.name = "deit_tiny_distilled_patch16_224"',
        ),
        (
            "model.name=resnet18",
            "'drop_path_rate': 0.1}: it takes no 'img_size'; remove it (--set model.args.img_size=), or all of "
            "another network's (--set model.args=)",
        ),
        ("optim.name=adamq", "optim.name = 'adamq': timm has no such optimizer; nearest are adam"),
        ("cache.teacher=regnety_160", "teacher.model is 'resnet10t' there and 'regnety_160' here"),
        ("cache.path=nowhere.zarr", "no teacher cache at 'nowhere.zarr'; make one with: limbeck cache build"),
        ("data.val=nowhere", "no shards at 'nowhere', as there is no such folder; check the path"),
        ("model.args.img_size=48", "cannot take images of views.size = 32 ("),
        ("train.batch=48", "40 images do not fill one batch of 48"),
    ],
)
def test_a_recipe_for_training_that_cannot_be(
    fails: Fails, student: Path, tmp_path: Path, change: str, words: str
) -> None:
    assert words in fails("train", student, "--out", tmp_path / "run", "--set", change)
    assert not (tmp_path / "run").exists()


def test_of_a_recipe_that_lacks_much_the_first_three_faults_are_told(fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "bare.toml"
    path.write_text('[data]\ntrain = "shards"\n')
    assert fails("train", path) == (
        f"recipe '{path}' has 7 faults: 'data.val' is missing; add it; 'model' is missing; add it; "
        "'loss' is missing; add it; and 4 more"
    )


def test_a_cache_of_other_views(fails: Fails, student: Path, tmp_path: Path) -> None:
    views = 'views={size=32, hflip=0.25, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25, mixup=0.8, cutmix=1.0}'
    told = fails("train", student, "--out", tmp_path / "run", "--set", views)
    assert "was built for something else: views.hflip is 0.5 there and 0.25 here; make the recipe agree" in told


def test_a_cache_of_other_shards(fails: Fails, student: Path, photos: Path, tmp_path: Path) -> None:
    other = pack(photos, tmp_path / "other", shard_rows=16, seed=3)
    told = fails("train", student, "--out", tmp_path / "run", "--set", f'data.train="{other.folder}"')
    assert "was built for something else: shards.md5: 3 of 3 entries differ, the first is number 0: '" in told


def test_a_cache_that_another_recipe_began(fails: Fails, run: Run, judging: Path, tmp_path: Path) -> None:
    assert run("cache", "build", judging) == 0
    told = fails("cache", "build", judging, "--set", "views.hflip=0.25", "--set", "cache.seeds=4")
    assert told.startswith(f"cache '{tmp_path / 'cache.zarr'}' was built for something else: ")
    assert "views.hflip is 0.5 there and 0.25 here" in told and "seeds is 2 there and 4 here" in told


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["cache.sedes=4"], "unknown key 'cache.sedes', did you mean 'seeds'?"),
        (["cache.seeds=all"], 'cache.seeds = "all": input should be a valid integer'),
        (
            ['teacher.run=""', "teacher.model=resnet1O1"],
            "teacher.model = 'resnet1O1': timm has no such model; nearest are resnet101",
        ),
        (["teacher.run=nowhere"], "teacher.run: 'nowhere' "),
    ],
)
def test_a_recipe_for_a_cache_that_cannot_be(
    fails: Fails, judging: Path, tmp_path: Path, changes: list[str], words: str
) -> None:
    told = fails("cache", "build", judging, *(word for change in changes for word in ("--set", change)))
    assert words in told
    assert not (tmp_path / "cache.zarr").exists()


@pytest.mark.parametrize("command", [("train",), ("cache", "build")])
def test_a_recipe_that_is_not_there(fails: Fails, command: tuple[str, ...]) -> None:
    for name in ("nowhere.toml", "a:fire:.toml", "[red]a.toml"):  # which rich would paint, were it let
        assert fails(*command, name) == f"recipe '{name}' is not there; check the path, or see: limbeck recipes"
    assert fails(*command, ".") == "recipe '.' is a folder; give the TOML file itself"


def test_a_bundle_misused(fails: Fails, run: Run, student: Path, shards: ShardIndex, tmp_path: Path) -> None:
    """A finished run without distillation, then what cannot be done with it."""
    alone = tmp_path / "alone"
    assert run("train", student, "--out", alone, "--set", "loss.distillation=none") == 0
    assert_facts(fails("export", alone, tmp_path / "bundle", "--fusion", "softmax-sum"), "softmax-sum", "class")
    assert fails("train", student, "--out", alone).endswith(
        "loss.distillation is 'none' there and 'hard' here; choose another --out"
    )
    told = fails("evaluate", alone, shards.folder, "--predictions", tmp_path / "no" / "rows.jsonl")
    assert_facts(told, "--predictions", f"'{tmp_path}/no/rows.jsonl'", f"'{tmp_path}/no'")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = fails("serve", alone, "--port", port, "--device", "cpu")
    assert told == f"port {port} on 127.0.0.1 is in use; choose another with --port"
    assert run("export", alone, tmp_path / "bundle") == 0
    assert fails("export", alone, tmp_path / "bundle").endswith(
        "is there already; remove it or choose another folder"
    )


def test_a_folder_that_cannot_be_made(fails: Fails, student: Path) -> None:
    told = fails("train", student, "--out", student / "run")  # the recipe is a file, no folder
    assert told.startswith(f"'{student / 'run'}': Not a directory; ")
