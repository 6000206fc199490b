"""The whole way through the real command line: images in, an answer over HTTP out."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from teacher_cache.shards import load_index, read_shard

WAIT_SECONDS = 120


class Shell:
    """Runs `limbeck` as a user would, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # One thread, as the server computes each image with: sums in another order would differ in the last bit.
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def start(self, *words: object) -> "subprocess.Popen[str]":
        command = [str(Path(sys.executable).with_name("limbeck")), *map(str, words)]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.folder, env=self._environment, stdout=pipe, stderr=pipe, text=True
        )

    def run(self, *words: object) -> tuple[str, str]:
        """Standard output and standard error of a command that must end well."""
        return ended(self.start(*words))

    @contextmanager
    def served(self, bundle: str) -> Iterator[str]:
        """The address of a server, which is told to stop by SIGTERM and must end well."""
        process = self.start("serve", bundle, "--port", 0, "--device", "cpu")
        try:
            assert process.stderr
            line = process.stderr.readline()
            found = re.search(r"answers at (http://\S+)", line)
            assert found, line + process.stderr.read()
            yield found.group(1)
        finally:
            process.send_signal(signal.SIGTERM)
            ended(process)


def ended(process: "subprocess.Popen[str]") -> tuple[str, str]:
    out, errors = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors and "Warning" not in errors
    return out, errors


def test_from_photos_to_an_answer_over_http_which_is_the_one_that_evaluate_writes(
    photos: Path, recipe_text: Callable[..., str], tmp_path: Path
) -> None:
    shell = Shell(tmp_path)
    for name in ("teacher", "cache", "student"):
        text = recipe_text(name, shards="shards", teacher="teacher", cache="cache.zarr")
        (tmp_path / f"{name}.toml").write_text(text)

    _, said = shell.run("pack", photos, "shards", "--shard-rows", 16)
    assert said.startswith("packed 40 images of 3 classes into 3 shards")

    shorter = ["--set", "schedule.epochs=1", "--set", "schedule.warmup_epochs=0"]
    _, said = shell.run("train", "teacher.toml", "--out", "teacher", *shorter)
    assert re.search(
        r"epoch 1/1: loss \d\.\d+  class [\d.]+ %\nrun 'teacher' is finished: class [\d.]+ %\n$", said
    )

    _, said = shell.run("cache", "build", "cache.toml")
    assert re.search(r"cache 'cache.zarr' is complete: 3 units, [\d,]+ bytes\n$", said)

    status, student = shell.start("cache", "status", "cache.zarr"), shell.start("train", "student.toml")
    shown, _ = ended(status)
    assert re.search(r"teacher +│ resnet10t, 3 classes", shown)
    assert re.search(r"targets +│ 80 of 80 \(100.0%\)", shown)
    assert re.search(r"state +│ complete", shown)
    _, said = ended(student)
    found = re.search(
        r"run 'runs/student' is finished: class ([\d.]+) %  distill ([\d.]+) %  joint ([\d.]+) %\n$", said
    )
    assert found

    run = Path("runs") / "student"
    evaluating = shell.start("evaluate", run, "shards", "--predictions", "predictions.jsonl")
    printed, _ = shell.run("export", run, "bundle", "--fusion", "logit-mean")
    facts = "deit_tiny_distilled_patch16_224, 3 classes, logit-mean"
    assert printed == f"bundle: {facts}; serve it with: limbeck serve bundle\n"
    index = load_index(tmp_path / "shards")
    records = [record for shard in range(3) for record in read_shard(index, shard)]
    with shell.served("bundle") as url, httpx.Client(base_url=url, timeout=WAIT_SECONDS) as client:
        measured, _ = ended(evaluating)
        for head, top1 in zip(("class", "distill", "softmax-sum"), found.groups(), strict=True):
            assert re.search(rf"│ {head} +│ +{top1} \(", measured)
        rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
        assert [row["key"] for row in rows] == [record.key for record in records]
        for row, record in zip(rows, records, strict=True):
            query = {"head": "all", "fusion": "softmax-sum"}
            answer = client.post("/v1/classify", content=record.image, params=query).raise_for_status().json()
            heads: dict[str, Any] = answer["images"][0]["heads"]
            for head in ("class", "distill", "joint"):
                assert {name: heads[head][name] for name in ("index", "probability")} == row[head]
        plain = client.post("/v1/classify", content=records[0].image).raise_for_status().json()
        assert plain["fusion"] == "logit-mean" and plain["images"][0]["label"] in ("hopper", "logo", "parcel")
