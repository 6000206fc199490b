"""The losses of DeiT against the formulas as they stand in the paper, in numpy and double precision."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from student.loss import Losses, Truth, distill_loss
from student.model import Heads
from student.recipe import LossSpec

Numbers = NDArray[np.float64]
few = settings(max_examples=30, deadline=None)


@dataclass(frozen=True)
class Case:
    """A batch in numpy: both heads' logits, mixed labels, the teacher's logits; and the numbers of a recipe."""

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

    def loss(self, distillation: str) -> Losses:
        numbers: dict[str, Any] = {"tau": self.tau, "balance": self.balance} if distillation == "soft" else {}
        spec = LossSpec(distillation=distillation, smoothing=self.smoothing, **numbers)
        return distill_loss(self.heads, self.truth, spec)

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


def smoothed(case: Case) -> Numbers:
    classes = case.label.shape[1]
    return (1 - case.smoothing) * case.label + case.smoothing * np.full(classes, 1 / classes)


@few
@given(cases())
def test_without_distillation_only_the_smoothed_truth_counts(case: Case) -> None:
    losses = case.loss("none")
    assert float(losses.total) == pytest.approx(cross_entropy(case.class_logits, smoothed(case)), abs=1e-9)
    assert float(losses.on_class) == float(losses.total)
    assert float(losses.on_distill) == 0
    untold = distill_loss(
        case.heads, Truth(case.truth.label, None, None), LossSpec(distillation="none", smoothing=case.smoothing)
    )
    assert float(untold.total) == float(losses.total)


@few
@given(cases())
def test_hard_distillation_is_half_the_smoothed_truth_and_half_the_teachers_plain_class(case: Case) -> None:
    losses = case.loss("hard")
    truth = cross_entropy(case.class_logits, smoothed(case))
    told = cross_entropy(case.distill_logits, np.eye(case.label.shape[1])[case.hard])
    assert float(losses.on_class) == pytest.approx(truth, abs=1e-9)
    assert float(losses.on_distill) == pytest.approx(told, abs=1e-9)
    assert float(losses.total) == pytest.approx(truth / 2 + told / 2, abs=1e-9)


@few
@given(cases())
def test_soft_distillation_is_the_papers_sum_with_tau_squared_and_a_mean_over_images(case: Case) -> None:
    losses = case.loss("soft")
    truth = cross_entropy(case.class_logits, smoothed(case))
    student, teacher = softmax(case.distill_logits / case.tau), softmax(case.teacher / case.tau)
    divergence = (teacher * (np.log(teacher) - np.log(student))).sum() / len(teacher)
    told = case.tau**2 * divergence
    assert float(losses.on_class) == pytest.approx(truth, abs=1e-9)
    assert float(losses.on_distill) == pytest.approx(told, rel=1e-9, abs=1e-9)
    assert float(losses.total) == pytest.approx(
        (1 - case.balance) * truth + case.balance * told, rel=1e-9, abs=1e-9
    )


@few
@given(cases())
def test_a_student_that_agrees_with_its_teacher_has_no_soft_loss(case: Case) -> None:
    agreed = Heads(torch.from_numpy(case.class_logits), torch.from_numpy(case.teacher) + 3)
    spec = LossSpec(distillation="soft", smoothing=0.0, tau=case.tau, balance=1.0)
    assert float(distill_loss(agreed, case.truth, spec).total) == pytest.approx(0, abs=1e-9)


@few
@given(cases(), st.sampled_from(["none", "soft", "hard"]))
def test_each_head_learns_from_its_own_word_alone(case: Case, distillation: str) -> None:
    heads = Heads(*(logits.clone().requires_grad_() for logits in case.heads))
    numbers: dict[str, Any] = {"tau": case.tau, "balance": case.balance} if distillation == "soft" else {}
    spec = LossSpec(distillation=distillation, smoothing=case.smoothing, **numbers)
    losses = distill_loss(heads, case.truth, spec)
    on_class = torch.autograd.grad(losses.on_class, heads, retain_graph=True, allow_unused=True)
    assert on_class[0] is not None and on_class[1] is None
    if distillation != "none":
        on_distill = torch.autograd.grad(losses.on_distill, heads, allow_unused=True)
        assert on_distill[0] is None and on_distill[1] is not None


@few
@given(cases(), st.sampled_from(["none", "soft", "hard"]))
def test_a_batch_shown_twice_over_has_the_same_loss(case: Case, distillation: str) -> None:
    fields = {name: np.concatenate([getattr(case, name)] * 2) for name in ("class_logits", "distill_logits")}
    fields |= {name: np.concatenate([getattr(case, name)] * 2) for name in ("label", "teacher")}
    twice = Case(**fields, smoothing=case.smoothing, tau=case.tau, balance=case.balance)
    assert float(twice.loss(distillation).total) == pytest.approx(
        float(case.loss(distillation).total), rel=1e-9, abs=1e-9
    )
