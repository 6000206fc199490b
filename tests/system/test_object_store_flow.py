"""The whole pipeline through the command line with shards, cache and bundle in a bucket, and its errors."""

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
import torch
from facts import assert_facts
from fault_proxy import FaultProxy
from safetensors.torch import load, save
from shell import Shell
from wait import until

from server.cli import main
from student.bundle.bundle import open_bundle
from student.bundle.transfer import fetch_bundle
from teacher_cache.data.index import ShardIndex, load_index
from teacher_cache.data.shards import read_shard
from teacher_cache.models.weights import weights_sha256
from teacher_cache.storage import object_store as bucket_module
from teacher_cache.storage.store import open_store

SHORTER = ("--set", "schedule.epochs=1", "--set", "schedule.warmup_epochs=0")


def test_photos_to_http_prediction_with_everything_in_a_bucket(
    photos: Path,
    teacher_run: Path,
    recipe_text: Callable[..., str],
    new_bucket: Callable[[], str],
    limbeck: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With an empty PATH (no curl, no aws), and in a folder with an unrelated server.py."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    Path("server.py").write_text("raise SystemExit('not this one')", encoding="utf-8")
    bucket = new_bucket()
    shards, cache, bundle = f"{bucket}/data/shards", f"{bucket}/cache.zarr", f"{bucket}/models/first"
    text = recipe_text("cache", shards=shards, teacher=teacher_run, cache=cache)
    Path("cache.toml").write_text(text + '\n[job]\nworkers = 0\nshard_cache = "kept"\n', encoding="utf-8")
    text = recipe_text("student", shards=shards, cache=cache)
    Path("student.toml").write_text(text + '\n[machine]\nworkers = 0\nshard_cache = "kept"\n', encoding="utf-8")

    assert_facts(limbeck("pack", photos, shards, "--shard-rows", 16), 40, 3, shards)
    packed = load_index(shards)
    limbeck("index", shards, "--out", f"{shards}/again.json")
    assert load_index(f"{shards}/again.json").shards == packed.shards
    said = limbeck("cache", "build", "cache.toml")
    assert re.search(rf"'{cache}'.*\b3 units.*[\d,]+ bytes\n$", said)
    said = limbeck("cache", "verify", cache, "--replay", 3)
    assert re.search(rf"'{cache}'\D*\b3\D+3\D+3\b", said)
    said = limbeck("train", "student.toml", *SHORTER)
    assert re.search(r"'runs/student'.*class\W+[\d.]+ ?%", said)
    assert len(list(Path("kept").glob("*.tar"))) == 3

    run = "runs/student"
    limbeck("evaluate", run, shards, "--predictions", "predictions.jsonl", "--workers", 0)
    assert_facts(limbeck("export", run, bundle), f"limbeck serve {bundle}")
    rows = [json.loads(line) for line in Path("predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    record, copies = read_shard(packed, 0)[0], tmp_path / "copies"
    copies.mkdir()
    shell = Shell(tmp_path, PATH="/nowhere", TMPDIR=str(copies))
    with (
        shell.served(f"photos={bundle}", "--workers", 1) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):

        def ask() -> Any:
            answer = client.post("/v1/classify", content=record.image, params={"head": "all"})
            return answer.raise_for_status().json()

        answer = ask()
        heads = answer["images"][0]["heads"]
        assert {name: heads["joint"][name] for name in ("index", "probability")} == rows[0]["joint"]
        assert answer["model"] == "photos"
        replace_twice(client, bundle, copies, lambda: ask()["images"][0]["heads"])
    assert not list(copies.glob("limbeck-*"))
    ends_before_it_is_ready(shell, bundle, copies)


def replace_twice(client: httpx.Client, bundle: str, copies: Path, ask: Callable[[], Any]) -> None:
    """Load a damaged bundle (the old one stays active), then an intact one (only its copy is kept)."""
    load_again, heads = "/v2/repository/models/photos/load", ask()
    assert client.post(load_again).status_code == 200
    store = open_store(bundle)
    weights, card = store.get("model.safetensors"), json.loads(store.get("card.json"))
    store.put("model.safetensors", weights[:-1] + b"?")
    store.put("card.json", json.dumps(card | {"sha256": "0" * 64}).encode())
    assert client.post(load_again).status_code == 400
    assert ask() == heads
    (first,) = copies.glob("limbeck-*")
    state = {name: tensor / 2 for name, tensor in load(weights).items()}
    store.put("model.safetensors", save(state))
    store.put("card.json", json.dumps(card | {"sha256": weights_sha256(state)}).encode())
    assert client.post(load_again).status_code == 200
    assert ask() != heads
    until(lambda: not first.exists())  # its workers have exited
    assert len(list(copies.glob("limbeck-*"))) == 1


def ends_before_it_is_ready(shell: Shell, bundle: str, copies: Path) -> None:
    process = shell.start("serve", bundle, "--port", 0)
    until(lambda: list(copies.glob("limbeck-*")) or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (128 + signal.SIGTERM, "", "")
    assert not list(copies.glob("limbeck-*"))


Fails = Callable[..., str]


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that must fail with one line and this exit status; returns the line."""

    def call(*words: object, status: int = 2) -> str:
        monkeypatch.setattr(sys, "argv", ["limbeck", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit, match=rf"^{status}$"):
            main()
        out, errors = capfd.readouterr()
        assert out == "" and errors.count("\n") == 1 and errors.startswith("limbeck: "), errors
        return errors.removeprefix("limbeck: ").rstrip("\n")

    return call


@pytest.fixture
def commands(
    photos: Path,
    student_run_folder: Path,
    teacher_run: Path,
    shards: ShardIndex,
    recipe_text: Callable[..., str],
    tmp_path: Path,
) -> Callable[[str], list[tuple[object, ...]]]:
    """Every command that uses a store, each with a location under a URL."""

    def make(url: str) -> list[tuple[object, ...]]:
        text = recipe_text("cache", shards=shards.folder, teacher=teacher_run, cache=f"{url}/a.zarr")
        (tmp_path / "cache.toml").write_text(text)
        (tmp_path / "student.toml").write_text(recipe_text("student", shards=f"{url}/shards", cache="a.zarr"))
        return [
            ("pack", photos, f"{url}/shards"),
            ("index", f"{url}/shards"),
            ("cache", "build", tmp_path / "cache.toml"),
            ("train", tmp_path / "student.toml", "--out", tmp_path / "run"),
            ("export", student_run_folder, f"{url}/bundle"),
            ("serve", f"{url}/bundle", "--port", 0),
        ]

    return make


@pytest.fixture(scope="module")
def student_run_folder(teacher_run: Path, shards: ShardIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that can be exported: the teacher's network, with shards for check images in its card."""
    run = tmp_path_factory.mktemp("finished") / "run"
    (run / "final").mkdir(parents=True)
    for path in (teacher_run / "final").iterdir():
        (run / "final" / path.name).write_bytes(path.read_bytes())
    card = json.loads((run / "final" / "card.json").read_text())
    card["recipe"] = {"data": {"train": shards.folder, "val": shards.folder}}
    (run / "final" / "card.json").write_text(json.dumps(card))
    return run


def test_names_with_url_characters_work_in_every_command(
    photos: Path,
    student_run_folder: Path,
    teacher_run: Path,
    recipe_text: Callable[..., str],
    new_bucket: Callable[[], str],
    limbeck: Callable[..., str],
    tmp_path: Path,
) -> None:
    bucket, odd = new_bucket(), "a b+c#d?e%20f"
    shards, cache, bundle = (f"{bucket}/{odd}/{name}" for name in ("shards#1", "cache#1.zarr", "bundle#1"))
    limbeck("pack", photos, shards, "--shard-rows", 16)
    limbeck("index", shards)
    limbeck("index", f"{shards}/00000{{0..2}}.tar", "--out", f"{shards}#2")
    assert load_index(f"{shards}#2").contents()["md5"] == load_index(shards).contents()["md5"]
    (tmp_path / "a.toml").write_text(recipe_text("cache", shards=shards, teacher=teacher_run, cache=cache))
    assert_facts(limbeck("cache", "build", tmp_path / "a.toml"), cache)
    limbeck("cache", "verify", cache, "--replay", 3)
    limbeck("export", student_run_folder, bundle, "--images", shards)
    (tmp_path / "copy").mkdir()
    fetch_bundle(bundle, tmp_path / "copy")
    listed = boto3.client("s3").list_objects_v2(Bucket=bucket.removeprefix("s3://"))["Contents"]
    tops = {found["Key"].rpartition(odd)[2].split("/")[1] for found in listed}
    assert all(found["Key"].startswith(f"{odd}/") for found in listed)
    assert tops == {"shards#1", "shards#1#2", "cache#1.zarr", "bundle#1"}


@pytest.mark.parametrize("trouble", ["bucket", "endpoint", "keys", "no keys"])
def test_unreachable_store_is_one_line_error_of_every_command(
    trouble: str,
    commands: Callable[[str], list[tuple[object, ...]]],
    fails: Fails,
    new_bucket: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, reason = new_bucket(), ""
    monkeypatch.setattr(bucket_module, "RETRY", bucket_module.RETRY | {"max_retries": 1})
    monkeypatch.setattr("teacher_cache.storage.retry.FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setitem(bucket_module.TIMEOUTS, "connect_timeout", "1 second")
    switch = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
    if trouble == "bucket":
        url, reason = "s3://there-is-no-such-bucket/a", "NoSuchBucket"
    elif trouble == "endpoint":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        reason = "http://127.0.0.1:9"
    elif trouble == "keys":
        reason = "InvalidAccessKeyId"
        httpx.post(switch, content=b"0").raise_for_status()
    else:
        reason = "AWS_ACCESS_KEY_ID"
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
    try:
        for words in commands(url):
            message = fails(*words, status=75 if trouble == "endpoint" else 2)
            assert_facts(message, url, reason)
            assert len(message) < 400, (words, message)
    finally:
        httpx.post(switch, content=b"1000000").raise_for_status()


@pytest.mark.parametrize("fault", ["500", "503", "refused", "stalled"])
def test_build_exits_with_75_after_retries_and_a_rerun_finishes_it(
    fault: str,
    proxy: FaultProxy,
    fails: Fails,
    shards_in_bucket: str,
    teacher_run: Path,
    recipe_text: Callable[..., str],
    new_bucket: Callable[[], str],
    limbeck: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """First for shards, read by worker processes, then for cache objects."""
    monkeypatch.setattr(bucket_module, "RETRY", bucket_module.RETRY | {"max_retries": 0})
    monkeypatch.setattr("teacher_cache.storage.retry.MAX_TOTAL_SECONDS", 0)
    recipe, where = tmp_path / "cache.toml", f"{new_bucket()}/a.zarr"
    text = recipe_text("cache", shards=shards_in_bucket, teacher=teacher_run, cache=where)
    recipe.write_text(text + "\n[job]\nworkers = 0\n")
    for place, lost in (("000001.tar", f"{shards_in_bucket}/000001.tar"), ("a.zarr/hard", f"{where}/hard")):
        with proxy.breaking(fault, every=1, where=place):
            assert_facts(fails("cache", "build", recipe, status=75), lost)
    assert re.search(rf"'{where}'.*\b3 units.*[\d,]+ bytes\n$", limbeck("cache", "build", recipe))


def test_objects_at_a_url_are_never_overwritten(
    student_run_folder: Path,
    photos: Path,
    fails: Fails,
    new_bucket: Callable[[], str],
    limbeck: Callable[..., str],
    tmp_path: Path,
) -> None:
    bundle = f"{new_bucket()}/bundle"
    boto3.client("s3").put_object(Bucket=bundle.split("/")[2], Key="bundle/labels.txt", Body=b"of a killed export")
    assert_facts(fails("serve", bundle, "--port", 0), bundle, "limbeck export")
    limbeck("export", student_run_folder, bundle)
    assert_facts(fails("export", student_run_folder, bundle), bundle)
    store = open_store(bundle)
    for name in store.names(""):
        (tmp_path / name).write_bytes(store.get(name))
    assert open_bundle(tmp_path, torch.device("cpu")).card.classes == ("hopper", "logo", "parcel")
    assert_facts(fails("train", "any.toml", "--out", bundle), "--out", "limbeck export")
    limbeck("pack", photos, f"{bundle}/shards", "--limit", 9)
    message = fails("pack", photos, f"{bundle}/shards", "--limit", 8)
    assert_facts(message, f"{bundle}/shards", "limit")
    assert not any(option in message for option in ("shard_rows", "seed"))
