"""Tests of the losses against the papers' formulas in double precision, and against timm's losses."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from student.data.batch import Truth
from student.model.student import Heads
from student.recipe import LossSpec
from student.training.loss import Losses, distill_loss
from teacher_cache.config import parse_recipe

Numbers = NDArray[np.float64]
few = settings(max_examples=30, deadline=None)


@dataclass(frozen=True)
class Case:
    """A batch in numpy (both heads' logits, mixed labels, teacher's logits) and the numbers of a recipe."""

    class_logits: Numbers
    distill_logits: Numbers
    label: Numbers
    teacher: Numbers
    smoothing: float
    tau: float
    balance: float

    @property
    def hard(self) -> NDArray[np.int64]:
        return self.teacher.argmax(axis=1)

    def spec(self, distillation: str, **fields: Any) -> LossSpec:
        numbers: dict[str, Any] = {"tau": self.tau, "balance": self.balance} if distillation == "soft" else {}
        return parse_recipe(
            {"distillation": distillation, "smoothing": self.smoothing, **numbers, **fields}, LossSpec, "it"
        )

    def loss(self, distillation: str, **fields: Any) -> Losses:
        return distill_loss(self.heads, self.truth, self.spec(distillation, **fields))

    @property
    def heads(self) -> Heads:
        return Heads(torch.from_numpy(self.class_logits), torch.from_numpy(self.distill_logits))

    @property
    def truth(self) -> Truth:
        label, hard = torch.from_numpy(self.label), torch.from_numpy(self.hard)
        return Truth(label, hard, torch.from_numpy(softmax(self.teacher / self.tau)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    images, classes = draw(st.integers(1, 5)), draw(st.integers(2, 7))
    logits = arrays(np.float64, (images, classes), elements=st.floats(-20, 20, width=32))
    own, other = (draw(arrays(np.int64, images, elements=st.integers(0, classes - 1))) for _ in range(2))
    lam = draw(arrays(np.float64, images, elements=st.floats(0, 1)))[:, None]
    return Case(
        class_logits=draw(logits),
        distill_logits=draw(logits),
        label=lam * np.eye(classes)[own] + (1 - lam) * np.eye(classes)[other],
        teacher=draw(logits),
        smoothing=draw(st.floats(0, 1)),
        tau=draw(st.floats(0.5, 10)),
        balance=draw(st.floats(0, 1)),
    )


def softmax(logits: Numbers) -> Numbers:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def cross_entropy(logits: Numbers, weights: Numbers) -> float:
    return float(np.mean([-(row * np.log(p)).sum() for row, p in zip(weights, softmax(logits), strict=True)]))


def binary_cross_entropy(logits: Numbers, targets: Numbers) -> float:
    sure = np.logaddexp(0, -logits)  # -log sigmoid(z); -log(1 - sigmoid(z)) adds z
    return float((targets * sure + (1 - targets) * (sure + logits)).mean())


def smoothed(case: Case) -> Numbers:
    classes = case.label.shape[1]
    return (1 - case.smoothing) * case.label + case.smoothing * np.full(classes, 1 / classes)


@few
@given(cases())
def test_without_distillation_the_loss_is_that_on_the_smoothed_label(case: Case) -> None:
    losses = case.loss("none")
    assert float(losses.total) == pytest.approx(cross_entropy(case.class_logits, smoothed(case)), abs=1e-9)
    assert float(losses.on_class) == float(losses.total)
    assert float(losses.on_distill) == 0
    untold = distill_loss(case.heads, Truth(case.truth.label, None, None), case.spec("none"))
    assert float(untold.total) == float(losses.total)


@few
@given(cases())
def test_hard_distillation_is_half_smoothed_label_and_half_teacher_class(case: Case) -> None:
    losses = case.loss("hard")
    truth = cross_entropy(case.class_logits, smoothed(case))
    teacher_loss = cross_entropy(case.distill_logits, np.eye(case.label.shape[1])[case.hard])
    assert float(losses.on_class) == pytest.approx(truth, abs=1e-9)
    assert float(losses.on_distill) == pytest.approx(teacher_loss, abs=1e-9)
    assert float(losses.total) == pytest.approx(truth / 2 + teacher_loss / 2, abs=1e-9)


@few
@given(cases())
def test_soft_distillation_is_the_papers_sum_scaled_by_tau_squared(case: Case) -> None:
    losses = case.loss("soft")
    truth = cross_entropy(case.class_logits, smoothed(case))
    student, teacher = softmax(case.distill_logits / case.tau), softmax(case.teacher / case.tau)
    divergence = (teacher * (np.log(teacher) - np.log(student))).sum() / len(teacher)
    teacher_loss = case.tau**2 * divergence
    assert float(losses.on_class) == pytest.approx(truth, abs=1e-9)
    assert float(losses.on_distill) == pytest.approx(teacher_loss, rel=1e-9, abs=1e-9)
    assert float(losses.total) == pytest.approx(
        (1 - case.balance) * truth + case.balance * teacher_loss, rel=1e-9, abs=1e-9
    )


@few
@given(cases())
def test_a_student_that_agrees_with_its_teacher_has_no_soft_loss(case: Case) -> None:
    agreed = Heads(torch.from_numpy(case.class_logits), torch.from_numpy(case.teacher) + 3)
    spec = LossSpec(distillation="soft", smoothing=0.0, tau=case.tau, balance=1.0)
    assert float(distill_loss(agreed, case.truth, spec).total) == pytest.approx(0, abs=1e-9)


@few
@given(cases(), st.sampled_from(["none", "soft", "hard", "truth"]))
def test_each_head_gets_gradients_only_from_its_own_loss(case: Case, distillation: str) -> None:
    heads = Heads(*(logits.clone().requires_grad_() for logits in case.heads))
    losses = distill_loss(heads, case.truth, case.spec(distillation))
    on_class = torch.autograd.grad(losses.on_class, heads, retain_graph=True, allow_unused=True)
    assert on_class[0] is not None and on_class[1] is None
    if distillation != "none":
        on_distill = torch.autograd.grad(losses.on_distill, heads, allow_unused=True)
        assert on_distill[0] is None and on_distill[1] is not None


@few
@given(cases(), st.sampled_from(["none", "soft", "hard", "truth"]))
def test_a_batch_repeated_twice_has_the_same_loss(case: Case, distillation: str) -> None:
    fields = {name: np.concatenate([getattr(case, name)] * 2) for name in ("class_logits", "distill_logits")}
    fields |= {name: np.concatenate([getattr(case, name)] * 2) for name in ("label", "teacher")}
    twice = Case(**fields, smoothing=case.smoothing, tau=case.tau, balance=case.balance)
    assert float(twice.loss(distillation).total) == pytest.approx(
        float(case.loss(distillation).total), rel=1e-9, abs=1e-9
    )


@few
@given(cases())
def test_the_reference_implementations_loss_is_divided_by_the_number_of_classes(case: Case) -> None:
    papers, codes = case.loss("soft"), case.loss("soft", kl="reference")
    classes = case.label.shape[1]
    assert float(codes.on_distill) == pytest.approx(float(papers.on_distill) / classes, rel=1e-9, abs=1e-9)
    assert float(codes.on_class) == float(papers.on_class)


@few
@given(cases(), st.sampled_from(["soft", "hard"]))
def test_with_head_class_the_class_head_gets_both_losses(case: Case, distillation: str) -> None:
    class_logits = torch.from_numpy(case.class_logits).requires_grad_()
    unheard = torch.from_numpy(case.distill_logits).requires_grad_()
    spec = case.spec(distillation, head="class")
    losses = distill_loss(Heads(class_logits, unheard), case.truth, spec)
    truth = cross_entropy(case.class_logits, smoothed(case))
    if distillation == "hard":
        teacher_loss = cross_entropy(case.class_logits, np.eye(case.label.shape[1])[case.hard])
        expected = truth / 2 + teacher_loss / 2
    else:
        student, teacher = softmax(case.class_logits / case.tau), softmax(case.teacher / case.tau)
        teacher_loss = case.tau**2 * (teacher * (np.log(teacher) - np.log(student))).sum() / len(teacher)
        expected = (1 - case.balance) * truth + case.balance * teacher_loss
    assert float(losses.total.detach()) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert torch.autograd.grad(losses.total, unheard, allow_unused=True) == (None,)
    assert spec.heads == ("class",)


@few
@given(cases())
def test_both_heads_learn_the_same_smoothed_label_with_distillation_truth(case: Case) -> None:
    losses = distill_loss(case.heads, Truth(case.truth.label, None, None), case.spec("truth"))
    parts = [cross_entropy(logits, smoothed(case)) for logits in (case.class_logits, case.distill_logits)]
    assert float(losses.total) == pytest.approx(sum(parts) / 2, abs=1e-9)
    assert [float(losses.on_class), float(losses.on_distill)] == pytest.approx(parts, abs=1e-9)
    assert case.spec("truth").heads == ("class", "distill")


@few
@given(cases())
def test_bce_targets_of_a_mixed_image_are_all_its_classes_or_their_weights(
    case: Case,
) -> None:
    classes = case.label.shape[1]
    every = (1 - case.smoothing) * (case.label > 0) + case.smoothing / classes
    for targets, expected in (("multi-label", every), ("soft", smoothed(case))):
        loss = case.loss("none", criterion="bce", bce_targets=targets)
        assert float(loss.total) == pytest.approx(binary_cross_entropy(case.class_logits, expected), abs=1e-9)


@few
@given(cases(), st.floats(0, 1))
def test_the_bce_threshold_rounds_targets_to_zero_and_one_like_timm(case: Case, threshold: float) -> None:
    loss = case.loss("none", criterion="bce", bce_targets="soft", bce_threshold=threshold)
    soft = case.truth.label * (1 - case.smoothing) + case.smoothing / case.label.shape[1]
    expected = binary_cross_entropy(case.class_logits, (soft > threshold).numpy().astype(np.float64))
    assert float(loss.total) == pytest.approx(expected, abs=1e-9)
    timms = BinaryCrossEntropy(smoothing=0.0, target_threshold=threshold)(case.heads.class_logits, soft)
    assert float(loss.total) == pytest.approx(float(timms), abs=1e-12)


@few
@given(cases(), st.sampled_from(["multi-label", "soft"]), st.sampled_from([None, 0.2]))
def test_losses_of_unmixed_images_equal_timms(case: Case, targets: str, threshold: float | None) -> None:
    smoothing = min(case.smoothing, 0.99)
    label, logits = torch.from_numpy(case.label.argmax(axis=1)), case.heads.class_logits
    hard_truth = Truth(torch.eye(case.label.shape[1], dtype=torch.float64)[label], None, None)
    soft = targets == "soft"
    fields = {"smoothing": smoothing, "criterion": "bce", "bce_targets": targets}
    spec = case.spec("none", **fields, bce_threshold=threshold if soft else None)
    timms = BinaryCrossEntropy(smoothing, target_threshold=threshold if soft else None)(logits, label)
    assert float(distill_loss(case.heads, hard_truth, spec).total) == pytest.approx(float(timms), abs=1e-9)
    plain = distill_loss(case.heads, hard_truth, case.spec("none", smoothing=smoothing))
    timms = LabelSmoothingCrossEntropy(smoothing)(logits, label)
    assert float(plain.total) == pytest.approx(float(timms), abs=1e-9)


@few
@given(cases())
def test_cross_entropy_of_mixed_images_equals_timms(case: Case) -> None:
    timms = SoftTargetCrossEntropy()(case.heads.class_logits, torch.from_numpy(smoothed(case)))
    assert float(case.loss("none").total) == pytest.approx(float(timms), abs=1e-9)


@few
@given(cases(), st.sampled_from(["class", "distill"]))
def test_hard_distillation_with_bce_uses_the_teachers_class_without_smoothing(case: Case, head: str) -> None:
    losses = case.loss("hard", criterion="bce", bce_targets="multi-label", head=head)
    logits = case.class_logits if head == "class" else case.distill_logits
    teacher_loss = binary_cross_entropy(logits, np.eye(case.label.shape[1])[case.hard])
    assert float(losses.on_distill) == pytest.approx(teacher_loss, abs=1e-9)
    assert float(losses.total) == pytest.approx((float(losses.on_class) + teacher_loss) / 2, abs=1e-9)
