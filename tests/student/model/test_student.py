import copy
import re

import numpy as np
import pytest
import timm
import torch
from facts import assert_facts
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from student.model.student import FUSIONS, Heads, create_student, fuse
from teacher_cache.errors import RecipeError
from teacher_cache.models.network import normalize
from teacher_cache.models.spec import MEAN, STD, NetworkSpec
from teacher_cache.rng import generator

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2}
TWO_HEADED = "deit_tiny_distilled_patch16_224"
ONE_HEADED = "deit_tiny_patch16_224"


def pixels_of(images: int, side: int) -> Tensor:
    return torch.from_numpy(generator("pixels").integers(0, 256, (images, 3, side, side), dtype=np.uint8))


@settings(max_examples=10, deadline=None)
@given(
    patch=st.integers(2, 16),
    across=st.integers(1, 5),
    images=st.integers(1, 3),
    classes=st.integers(2, 12),
    training=st.booleans(),
    name=st.sampled_from([TWO_HEADED, ONE_HEADED]),
)
def test_a_student_returns_two_heads_at_any_size_in_training_and_evaluation(
    patch: int, across: int, images: int, classes: int, training: bool, name: str
) -> None:
    side = patch * across
    spec = NetworkSpec(name=name, args={**SMALL, "img_size": side, "patch_size": patch})
    answer = create_student(spec, classes, distill_head=name == TWO_HEADED).train(training)(
        pixels_of(images, side)
    )
    assert isinstance(answer, Heads)
    assert [logits.shape for logits in answer] == [(images, classes)] * 2
    assert all(logits.dtype == torch.float32 for logits in answer)
    assert torch.equal(*answer) == (name == ONE_HEADED)


def test_both_heads_equal_timms_in_training_with_dropout() -> None:
    args = {**SMALL, "img_size": 32, "patch_size": 8, "drop_rate": 0.3, "drop_path_rate": 0.3}
    student = create_student(NetworkSpec(name=TWO_HEADED, args=args), 5, distill_head=True).train()
    timm_network = copy.deepcopy(student.network)
    timm_network.set_distilled_training(True)
    pixels = pixels_of(4, 32)
    torch.manual_seed(3)
    expected = timm_network(normalize(pixels.float(), MEAN, STD))
    torch.manual_seed(3)
    answer = student(pixels)
    assert torch.equal(answer.class_logits, expected[0])
    assert torch.equal(answer.distill_logits, expected[1])
    assert not torch.equal(*expected)


def test_the_mean_of_the_logits_equals_timms_output_in_evaluation() -> None:
    spec = NetworkSpec(name=TWO_HEADED, args={**SMALL, "img_size": 32, "patch_size": 8})
    student, pixels = create_student(spec, 5, distill_head=True).eval(), pixels_of(4, 32)
    expected = student.network(normalize(pixels.float(), MEAN, STD))
    answer = student(pixels)
    assert torch.equal((answer.class_logits + answer.distill_logits) / 2, expected)
    assert torch.allclose(fuse(answer, "logit-mean"), expected.softmax(dim=1))


def test_uint8_and_float_pixels_are_normalized_by_the_recipes_mean_and_std() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    spec = NetworkSpec(name=ONE_HEADED, args={**SMALL, "img_size": 16, "patch_size": 8}, mean=mean, std=std)
    student, pixels = create_student(spec, 3, distill_head=False).eval(), pixels_of(2, 16)
    answer = student(pixels)
    assert torch.equal(answer.class_logits, student(pixels.float()).class_logits)
    plain = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(answer.class_logits, student.network(plain), atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_a_one_headed_network_returns_its_logits_twice(training: bool) -> None:
    spec = NetworkSpec(name="resnet10t", args={"stem_type": "", "channels": [8, 8, 16, 16]}, small_stem=True)
    student = create_student(spec, 3, distill_head=False).train(training)
    network, pixels = copy.deepcopy(student.network), pixels_of(4, 32)
    answer = student(pixels)
    assert torch.equal(answer.class_logits, network(normalize(pixels.float(), MEAN, STD)))
    assert torch.equal(answer.class_logits, answer.distill_logits)


def test_the_heads_of_distilled_pit_equal_timms() -> None:
    student = create_student(NetworkSpec(name="pit_ti_distilled_224"), 3, distill_head=True).eval()
    pixels = pixels_of(1, 224)
    answer = student(pixels)
    expected = student.network(normalize(pixels.float(), MEAN, STD))
    assert torch.allclose((answer.class_logits + answer.distill_logits) / 2, expected, atol=1e-6)
    assert not torch.equal(*answer)


@pytest.mark.parametrize("name", ["levit_128s", "efficientformerv2_s0", "pit_ti_224"])
def test_a_second_head_without_its_own_token_is_left_to_timm(name: str) -> None:
    student = create_student(NetworkSpec(name=name), 3, distill_head=False).eval()
    pixels = pixels_of(1, 224)
    answer = student(pixels)
    assert torch.equal(answer.class_logits, student.network(normalize(pixels.float(), MEAN, STD)))
    assert torch.equal(answer.class_logits, answer.distill_logits)
    with pytest.raises(RecipeError) as raised:
        create_student(NetworkSpec(name=name), 3, distill_head=True)
    assert_facts(raised.value, name, "model.name", "deit_small_distilled_patch16_224")


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in timm.list_models("deit*") if "distilled" not in name),
        "deit_tiny_patch16_224.fb_in1k",
        "vit_tiny_patch16_224",
        "resnet10t",
    ],
)
def test_the_error_for_a_model_without_a_distillation_head_suggests_one_with_it(name: str) -> None:
    small = SMALL if "resnet" not in name else {"channels": [8, 8, 16, 16]}
    with pytest.raises(RecipeError) as raised:
        create_student(NetworkSpec(name=name, args=small), 3, distill_head=True)
    message = str(raised.value)
    assert_facts(message, name, "model.name", "loss.head")
    assert "\n" not in message
    (named,) = re.findall(r"\w+_distilled_[\w.]*\w", message)
    assert create_student(NetworkSpec(name=named, args=SMALL), 3, distill_head=True).two_headed
    if name.startswith("deit_"):
        assert named.replace("_distilled", "") == name


@pytest.mark.parametrize(
    "args",
    [
        {"num_heads": 0},
        {"num_heads": 5},
        {"patch_size": 0},
        {"img_size": "large"},
        {"depth": -1},
        {"act_layer": "none such"},
        {"num_classes": 7},
        {"heads": 2},
    ],
)
def test_invalid_model_arguments_are_reported_with_the_reason(args: dict[str, object]) -> None:
    with pytest.raises(RecipeError) as raised:
        create_student(NetworkSpec(name=TWO_HEADED, args={**SMALL, **args}), 3, distill_head=True)
    message = str(raised.value)
    assert_facts(message, TWO_HEADED, *(f"{name!r}: {value!r}" for name, value in args.items()))
    assert len(message.partition("}")[2]) > 5 and "\n" not in message, "the reason follows"


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_every_fusion_gives_probabilities_by_its_formula(data: st.DataObject) -> None:
    shape = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 6))
    logits = arrays(np.float64, shape, elements=st.floats(-30, 30, width=32))
    heads = Heads(torch.from_numpy(data.draw(logits)), torch.from_numpy(data.draw(logits)))
    answers = {how: fuse(heads, how) for how in FUSIONS}
    for answer in answers.values():
        assert torch.allclose(answer.sum(dim=1), torch.ones(shape[0], dtype=torch.float64))
        assert (answer >= 0).all()
    first, second = (torch.exp(one) / torch.exp(one).sum(dim=1, keepdim=True) for one in heads)
    assert torch.allclose(answers["class"], first)
    assert torch.allclose(answers["distill"], second)
    assert torch.allclose(answers["softmax-sum"], (first + second) / 2)
    geometric = (first * second).sqrt()
    assert torch.allclose(answers["logit-mean"], geometric / geometric.sum(dim=1, keepdim=True))


def test_an_unknown_fusion_error_lists_the_known_fusions() -> None:
    heads = Heads(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(RecipeError) as raised:
        fuse(heads, "product")
    assert_facts(raised.value, "fusion", "product", *FUSIONS)
