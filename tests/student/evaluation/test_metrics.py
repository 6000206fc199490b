import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from student.evaluation.metrics import BINS, EvalMetrics, Outcomes, metrics_of, score
from student.model.student import FUSIONS, Heads, fuse
from teacher_cache.rng import generator


def random_heads(images: int, classes: int, seed: int, sharp: float = 3.0) -> tuple[Heads, Tensor]:
    """Logits of two heads that often agree with the labels, and the labels."""
    rng = generator("metrics", seed)
    labels = torch.from_numpy(rng.integers(0, classes, images))
    hint = 2 * F.one_hot(labels, classes)
    first, second = (torch.from_numpy(rng.normal(0, sharp, (images, classes))).float() + hint for _ in range(2))
    return Heads(first, second), labels


def metrics_for(heads: Heads, readout: str, labels: Tensor, resamples: int = 20, seed: int = 0) -> EvalMetrics:
    classes = heads.class_logits.shape[1]
    outcomes = score(heads, readout, F.one_hot(labels, classes).bool())
    return metrics_of({"it": outcomes}, classes, resamples, seed)["it"]


@settings(max_examples=25)
@given(st.integers(1, 60), st.integers(6, 12), st.integers(0, 9), st.sampled_from(FUSIONS), st.floats(0.1, 40))
def test_the_metrics_equal_torchmetrics(images: int, classes: int, seed: int, readout: str, sharp: float) -> None:
    heads, labels = random_heads(images, classes, seed, sharp)
    metrics, probabilities = metrics_for(heads, readout, labels), fuse(heads, readout)
    for k, figure in ((1, metrics.top1), (5, metrics.top5)):
        expected = multiclass_accuracy(probabilities, labels, classes, average="micro", top_k=k)
        assert figure is not None and figure.value == pytest.approx(100 * float(expected), abs=1e-4)
    expected = multiclass_calibration_error(probabilities, labels, classes, n_bins=BINS)
    assert metrics.calibration.value == pytest.approx(100 * float(expected), abs=1e-3)
    exact = fuse(Heads(heads.class_logits.double(), heads.distill_logits.double()), readout)
    assert metrics.nll.value == pytest.approx(float(F.nll_loss(exact.log(), labels)))


def test_a_confident_mistake_costs_its_logits_and_not_infinity() -> None:
    wrong = torch.tensor([[0.0, 300.0]])
    assert metrics_for(Heads(wrong, wrong), "softmax-sum", torch.tensor([0])).nll.value == pytest.approx(300)


def test_any_of_several_true_classes_is_correct_and_their_probabilities_add_up() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2]])
    outcome = score(Heads(probabilities.log(), probabilities.log()), "class", torch.tensor([[False, True, True]]))
    assert (outcome.predicted.item(), outcome.correct.item(), outcome.in_top5.item()) == (0, False, True)
    assert outcome.nll.item() == pytest.approx(-np.log(0.5))
    outcome = score(Heads(probabilities.log(), probabilities.log()), "class", torch.tensor([[True, False, True]]))
    assert outcome.correct.item() and outcome.nll.item() == pytest.approx(-np.log(0.7))


def test_five_classes_or_fewer_have_no_top_five() -> None:
    heads, labels = random_heads(20, 5, 0)
    assert metrics_for(heads, "class", labels).top5 is None


def test_the_intervals_equal_those_of_a_plain_bootstrap() -> None:
    heads, labels = random_heads(300, 10, 1)
    metrics = metrics_for(heads, "softmax-sum", labels, resamples=400, seed=5)
    probabilities = fuse(heads, "softmax-sum")
    figures = []
    for number in range(400):
        rows = torch.from_numpy(generator("bootstrap", 5, number).integers(0, 300, 300))
        top1 = multiclass_accuracy(probabilities[rows], labels[rows], 10, average="micro")
        figures.append((top1, multiclass_calibration_error(probabilities[rows], labels[rows], 10, n_bins=BINS)))
    low, high = 100 * np.quantile(np.array(figures, dtype=float), (0.025, 0.975), axis=0)
    assert (metrics.top1.low, metrics.top1.high) == pytest.approx((low[0], high[0]))
    assert (metrics.calibration.low, metrics.calibration.high) == pytest.approx((low[1], high[1]), abs=1e-3)
    assert metrics.top1.low < metrics.top1.value < metrics.top1.high
    assert metrics == metrics_for(heads, "softmax-sum", labels, resamples=400, seed=5)
    assert metrics.top1 != metrics_for(heads, "softmax-sum", labels, resamples=400, seed=6).top1


def test_all_predictions_are_measured_on_the_same_resamples() -> None:
    heads, labels = random_heads(50, 10, 2)
    truth = F.one_hot(labels, 10).bool()
    outcomes = {readout: score(heads, readout, truth) for readout in ("class", "distill")}
    both = metrics_of(outcomes, 10, 30, 0)
    assert both["distill"] == metrics_of({"distill": outcomes["distill"]}, 10, 30, 0)["distill"]


def test_joined_batches_equal_the_whole() -> None:
    heads, labels = random_heads(9, 6, 3)
    truth = F.one_hot(labels, 6).bool()
    parts = [
        score(Heads(heads.class_logits[rows], heads.distill_logits[rows]), "class", truth[rows])
        for rows in (slice(0, 4), slice(4, 9))
    ]
    whole = score(heads, "class", truth)
    joined = Outcomes.join(parts)
    for name in Outcomes.__dataclass_fields__:
        assert torch.equal(getattr(joined, name), getattr(whole, name))
