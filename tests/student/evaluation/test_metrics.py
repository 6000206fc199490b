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


def drawn(images: int, classes: int, seed: int, sharp: float = 3.0) -> tuple[Heads, Tensor]:
    """Logits of two heads that often agree with the labels, and the labels."""
    rng = generator("metrics", seed)
    labels = torch.from_numpy(rng.integers(0, classes, images))
    hint = 2 * F.one_hot(labels, classes)
    first, second = (torch.from_numpy(rng.normal(0, sharp, (images, classes))).float() + hint for _ in range(2))
    return Heads(first, second), labels


def measured(heads: Heads, how: str, labels: Tensor, resamples: int = 20, seed: int = 0) -> EvalMetrics:
    classes = heads.class_logits.shape[1]
    verdicts = score(heads, how, F.one_hot(labels, classes).bool())
    return metrics_of({"it": verdicts}, classes, resamples, seed)["it"]


@settings(max_examples=25)
@given(st.integers(1, 60), st.integers(6, 12), st.integers(0, 9), st.sampled_from(FUSIONS), st.floats(0.1, 40))
def test_the_metrics_equal_torchmetrics(images: int, classes: int, seed: int, how: str, sharp: float) -> None:
    heads, labels = drawn(images, classes, seed, sharp)
    found, likely = measured(heads, how, labels), fuse(heads, how)
    for k, figure in ((1, found.top1), (5, found.top5)):
        expected = multiclass_accuracy(likely, labels, classes, average="micro", top_k=k)
        assert figure is not None and figure.value == pytest.approx(100 * float(expected), abs=1e-4)
    expected = multiclass_calibration_error(likely, labels, classes, n_bins=BINS)
    assert found.calibration.value == pytest.approx(100 * float(expected), abs=1e-3)
    exact = fuse(Heads(heads.class_logits.double(), heads.distill_logits.double()), how)
    assert found.nll.value == pytest.approx(float(F.nll_loss(exact.log(), labels)))


def test_a_confident_mistake_costs_its_logits_and_not_infinity() -> None:
    wrong = torch.tensor([[0.0, 300.0]])
    assert measured(Heads(wrong, wrong), "softmax-sum", torch.tensor([0])).nll.value == pytest.approx(300)


def test_any_of_several_true_classes_is_correct_and_their_probabilities_add_up() -> None:
    likely = torch.tensor([[0.5, 0.3, 0.2]])
    told = score(Heads(likely.log(), likely.log()), "class", torch.tensor([[False, True, True]]))
    assert (told.predicted.item(), told.correct.item(), told.in_top5.item()) == (0, False, True)
    assert told.nll.item() == pytest.approx(-np.log(0.5))
    told = score(Heads(likely.log(), likely.log()), "class", torch.tensor([[True, False, True]]))
    assert told.correct.item() and told.nll.item() == pytest.approx(-np.log(0.7))


def test_five_classes_or_fewer_have_no_top_five() -> None:
    heads, labels = drawn(20, 5, 0)
    assert measured(heads, "class", labels).top5 is None


def test_the_intervals_equal_those_of_a_plain_bootstrap() -> None:
    heads, labels = drawn(300, 10, 1)
    found = measured(heads, "softmax-sum", labels, resamples=400, seed=5)
    likely = fuse(heads, "softmax-sum")
    figures = []
    for number in range(400):
        rows = torch.from_numpy(generator("bootstrap", 5, number).integers(0, 300, 300))
        top1 = multiclass_accuracy(likely[rows], labels[rows], 10, average="micro")
        figures.append((top1, multiclass_calibration_error(likely[rows], labels[rows], 10, n_bins=BINS)))
    low, high = 100 * np.quantile(np.array(figures, dtype=float), (0.025, 0.975), axis=0)
    assert (found.top1.low, found.top1.high) == pytest.approx((low[0], high[0]))
    assert (found.calibration.low, found.calibration.high) == pytest.approx((low[1], high[1]), abs=1e-3)
    assert found.top1.low < found.top1.value < found.top1.high
    assert found == measured(heads, "softmax-sum", labels, resamples=400, seed=5)
    assert found.top1 != measured(heads, "softmax-sum", labels, resamples=400, seed=6).top1


def test_all_predictions_are_measured_on_the_same_resamples() -> None:
    heads, labels = drawn(50, 10, 2)
    truth = F.one_hot(labels, 10).bool()
    ways = {how: score(heads, how, truth) for how in ("class", "distill")}
    both = metrics_of(ways, 10, 30, 0)
    assert both["distill"] == metrics_of({"distill": ways["distill"]}, 10, 30, 0)["distill"]


def test_joined_batches_equal_the_whole() -> None:
    heads, labels = drawn(9, 6, 3)
    truth = F.one_hot(labels, 6).bool()
    parts = [
        score(Heads(heads.class_logits[rows], heads.distill_logits[rows]), "class", truth[rows])
        for rows in (slice(0, 4), slice(4, 9))
    ]
    whole = score(heads, "class", truth)
    joined = Outcomes.join(parts)
    for name in Outcomes.__dataclass_fields__:
        assert torch.equal(getattr(joined, name), getattr(whole, name))
