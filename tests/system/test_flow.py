"""The whole pipeline through the command line: from images to predictions over HTTP."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from facts import assert_facts
from shell import Shell, ended

from teacher_cache.data.index import load_index
from teacher_cache.data.shards import read_shard

WAIT_SECONDS = 120


def test_photos_to_http_prediction_equals_evaluate_output(
    photos: Path, recipe_text: Callable[..., str], tmp_path: Path
) -> None:
    shell = Shell(tmp_path)
    for name in ("teacher", "cache", "student"):
        text = recipe_text(name, shards="shards", teacher="teacher", cache="cache.zarr")
        (tmp_path / f"{name}.toml").write_text(text)

    _, said = shell.run("pack", photos, "shards", "--shard-rows", 16)
    assert_facts(said, 40, 3, "shards")

    shorter = ["--set", "schedule.epochs=1", "--set", "schedule.warmup_epochs=0"]
    _, said = shell.run("train", "teacher.toml", "--out", "teacher", *shorter)
    assert re.search(r"epoch 1/1\b.*loss\W+\d\.\d+\W+class\W+[\d.]+ ?%\n3 of 3.*data\.val", said)
    assert re.search(r"\n.*'teacher'.*class\W+[\d.]+ ?%\n$", said)

    _, said = shell.run("cache", "build", "cache.toml")
    assert re.search(r"'cache\.zarr'.*\b3 units.*[\d,]+ bytes\n$", said)

    status, student = shell.start("cache", "status", "cache.zarr"), shell.start("train", "student.toml")
    shown, _ = ended(status)
    assert_facts(shown, "resnet10t")
    assert re.search(r"\b80\D+80\D+100\.0 ?%", shown) and "limbeck cache build" not in shown
    _, said = ended(student)
    found = re.search(
        r"'runs/student'.*class\W+([\d.]+) ?%\W+distill\W+([\d.]+) ?%\W+joint\W+([\d.]+) ?%\n$", said
    )
    assert found

    run = Path("runs") / "student"
    evaluating = shell.start("evaluate", run, "shards", "--predictions", "predictions.jsonl")
    printed, _ = shell.run("export", run, "bundle", "--fusion", "logit-mean")
    assert_facts(printed, "deit_tiny_distilled_patch16_224", 3, "logit-mean", "limbeck serve bundle")
    index = load_index(tmp_path / "shards")
    records = [record for shard in range(3) for record in read_shard(index, shard)]
    with shell.served("bundle") as url, httpx.Client(base_url=url, timeout=WAIT_SECONDS) as client:
        measured, _ = ended(evaluating)
        for head, top1 in zip(("class", "distill", "softmax-sum"), found.groups(), strict=True):
            assert re.search(rf"\b{head}\W+{re.escape(top1)}\b", measured)
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
