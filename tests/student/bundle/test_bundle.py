import re
import shutil
from pathlib import Path

import pytest
import torch
from facts import assert_facts
from torch import Tensor

from student.bundle.bundle import HeadProbabilities, open_bundle
from student.bundle.export import ExportOptions, export
from student.model.student import FUSIONS
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.shards import read_shard
from teacher_cache.errors import RecipeError, RunError
from teacher_cache.models.card import load_card
from teacher_cache.models.run_folder import FINAL
from teacher_cache.rng import generator

CPU = torch.device("cpu")


@pytest.fixture
def pixels() -> Tensor:
    return torch.from_numpy(generator("images").integers(0, 256, (5, 32, 32, 3), dtype="uint8"))


def equal(a: HeadProbabilities, b: HeadProbabilities) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("class_", "distill", "fused"))


def test_a_moved_bundle_predicts_exactly_what_its_run_predicts(
    student_run: Path, tmp_path: Path, pixels: Tensor
) -> None:
    expected = open_bundle(student_run, CPU).predict(pixels)
    export(student_run, tmp_path / "bundle")
    (tmp_path / "bundle").rename(tmp_path / "moved")
    bundle = open_bundle(tmp_path / "moved", CPU)
    assert equal(bundle.predict(pixels), expected)
    assert equal(bundle.predict(pixels), bundle.predict(pixels))
    assert torch.allclose(expected.fused, (expected.class_ + expected.distill) / 2)
    assert not torch.equal(expected.class_, expected.distill)
    assert sorted(path.name for path in (tmp_path / "moved").iterdir()) == [
        "README.md",
        "card.json",
        "check.safetensors",
        "config.json",
        "labels.txt",
        "model.safetensors",
    ]
    assert (tmp_path / "moved" / "labels.txt").read_text() == "hopper\nlogo\nparcel\n"


def test_a_prediction_does_not_change_the_next(student_run: Path, pixels: Tensor) -> None:
    bundle = open_bundle(student_run, CPU)
    single = [bundle.predict(image[None]).fused for image in pixels]
    again = [bundle.predict(image[None]).fused for image in pixels.flip(0)][::-1]
    assert torch.equal(torch.cat(single), torch.cat(again))
    assert not bundle.student.training


def test_an_image_is_prepared_by_the_cards_settings(student_run: Path, shards: ShardIndex) -> None:
    bundle = open_bundle(student_run, CPU)
    assert bundle.card.eval.model_dump() == {"size": 32, "crop": 0.9, "interpolation": "bicubic"}
    assert bundle.prepare(read_shard(shards, 0)[0].image).shape == (32, 32, 3)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_bundle_uses_the_fusion_chosen_at_export(
    student_run: Path, tmp_path: Path, pixels: Tensor, fusion: str
) -> None:
    export(student_run, tmp_path / "bundle", ExportOptions(fusion))
    bundle = open_bundle(tmp_path / "bundle", CPU)
    assert bundle.card.fusion == fusion
    assert equal(bundle.predict(pixels), open_bundle(student_run, CPU).predict(pixels, fusion))
    assert load_card(student_run / FINAL).fusion == "softmax-sum"  # the run's own card is unchanged


def test_an_unfinished_run_is_not_exported(student_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(student_run, run)
    shutil.rmtree(run / FINAL)
    with pytest.raises(RunError) as raised:
        export(run, tmp_path / "bundle")
    assert_facts(raised.value, run, "limbeck train")
    assert not (tmp_path / "bundle").exists()


def test_an_untrained_head_is_not_fused(alone_run: Path, tmp_path: Path, pixels: Tensor) -> None:
    for fusion in ("softmax-sum", "logit-mean", "distill"):
        with pytest.raises(RecipeError) as raised:
            export(alone_run, tmp_path / "bundle", ExportOptions(fusion))
        assert_facts(raised.value, "fusion", f"'{fusion}'", "class")
    assert not (tmp_path / "bundle").exists()
    assert export(alone_run, tmp_path / "bundle").card.fusion == "class"
    answer = open_bundle(tmp_path / "bundle", CPU).predict(pixels)
    assert torch.equal(answer.fused, answer.class_)


def test_export_rejects_an_unknown_fusion(student_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        export(student_run, tmp_path / "bundle", ExportOptions("product"))
    assert_facts(raised.value, "fusion", "product", *FUSIONS)


def test_an_existing_folder_is_never_overwritten(student_run: Path, tmp_path: Path) -> None:
    export(student_run, tmp_path / "bundle", ExportOptions("class"))
    with pytest.raises(RunError, match=re.escape(str(tmp_path / "bundle"))):
        export(student_run, tmp_path / "bundle")
    assert load_card(tmp_path / "bundle").fusion == "class"


def test_a_folder_that_is_neither_run_nor_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError) as raised:
        open_bundle(tmp_path, CPU)
    assert_facts(raised.value, tmp_path, "card.json", "limbeck export")


def test_bundle_files_have_the_permissions_of_the_umask(student_run: Path, tmp_path: Path) -> None:
    """The server may run as another user than the training."""
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in (student_run / FINAL).iterdir()}
    assert modes == {(tmp_path / "plain").stat().st_mode}
