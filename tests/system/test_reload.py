"""Reloads: a changed bundle is served, an unusable one leaves the old model in place."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from facts import assert_facts
from safetensors.torch import load_file, save_file

from server.ipc.messages import Prediction
from server.metrics import ServerMetrics
from server.serving.registry import Registry, Source
from server.serving.supervisor import Supervisor
from server.settings import Settings
from student.bundle.bundle import open_bundle
from teacher_cache.errors import RunError
from teacher_cache.models.weights import weights_sha256

SETTINGS = Settings(device="cpu", workers=1)


@pytest.fixture(scope="module")
def supervisor() -> Iterator[Supervisor]:
    with Supervisor() as supervisor:
        yield supervisor


def changed_card(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "card.json").read_text())
    for name, value in changes.items():
        card[name] = card[name] | value if isinstance(value, dict) else value
    (folder / "card.json").write_text(json.dumps(card))


def test_reload_of_an_unusable_bundle_keeps_the_old_model(
    supervisor: Supervisor,
    new_bundle: Callable[[Path, int], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two cases: an input size that the network does not accept, and NaN weights."""
    folder = new_bundle(tmp_path / "bundle", 1)

    async def work() -> None:
        models = Registry(supervisor, SETTINGS, ServerMetrics())
        await models.open([Source(str(folder), "m", "1")])
        before = models.get("m")
        changed_card(folder, eval={"size": 48})
        await models.reload()
        assert models.get("m") is before
        changed_card(folder, eval={"size": 32})
        state = load_file(folder / "model.safetensors")
        state["head.bias"][0] = float("nan")
        save_file(state, folder / "model.safetensors")
        changed_card(folder, sha256=weights_sha256(state))
        await models.reload()
        assert models.get("m") is before
        await models.close()

    asyncio.run(work())
    size, weights = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert_facts(size, folder)
    assert_facts(weights, folder)
    assert ["48" in text.replace(str(folder), "") for text in (size, weights)] == [True, False]


def test_reload_with_a_changed_card_serves_the_new_card(
    supervisor: Supervisor, new_bundle: Callable[[Path, int], Path], pictures: dict[str, bytes], tmp_path: Path
) -> None:
    folder = new_bundle(tmp_path / "bundle", 1)

    async def work() -> tuple[Prediction, Prediction]:
        models = Registry(supervisor, SETTINGS, ServerMetrics())
        await models.open([Source(str(folder), "m", "1")])
        first = await models.get("m").predict(pictures["jpeg"])
        changed_card(folder, fusion="logit-mean")
        await models.reload()
        assert models.get("m").info.fusion == "logit-mean"
        second = await models.get("m").predict(pictures["jpeg"])
        await models.close()
        return first, second

    first, second = asyncio.run(work())
    expected = open_bundle(folder, torch.device("cpu"))
    pixels = torch.from_numpy(expected.prepare(pictures["jpeg"]))[None]
    assert second.joint.tolist() == expected.predict(pixels).fused[0].tolist() != first.joint.tolist()


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        ("", "NAME@VERSION=FOLDER"),
        ("a=", "NAME@VERSION=FOLDER"),
        ("a b=x", "a b=x"),
        ('a"=x', 'a"=x'),
        ("a\n=x", r"a\n=x"),
        ("m@1 2=x", "m@1 2=x"),
    ],
)
def test_invalid_bundle_argument_is_a_one_line_error(words: str, fact: str) -> None:
    with pytest.raises(RunError) as raised:
        Source.parse(words)
    assert_facts(raised.value, fact)
    assert "\n" not in str(raised.value)
