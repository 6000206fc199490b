import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from teacher_cache.cache.encoding import Encoding
from teacher_cache.rng import generator

KINDS = ("hard", "topk", "dense")
VALUES = st.sampled_from(["float16", "uint8"])


def logits_of(seed: int, rows: int, classes: int, scale: float) -> NDArray[np.float32]:
    return (scale * generator("test", seed).standard_normal((rows, classes))).astype(np.float32)


def softmax(logits: NDArray[np.floating], tau: float = 1.0) -> NDArray[np.float64]:
    scaled = logits.astype(np.float64) / tau
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def digests(rows: int) -> NDArray[np.uint64]:
    return generator("digest", rows).integers(0, 2**64, rows, dtype=np.uint64)


CASE = st.tuples(st.integers(0, 10**6), st.integers(0, 6), st.integers(2, 40), st.floats(0.1, 20.0))


@given(
    case=CASE, kind=st.sampled_from(KINDS), k=st.integers(1, 40), values=VALUES, bits=st.sampled_from([16, 32, 64])
)
def test_encoded_columns_have_the_shapes_and_types_they_declare(
    case: tuple[int, int, int, float], kind: str, k: int, values: str, bits: int
) -> None:
    seed, rows, classes, scale = case
    encoding = Encoding(kind, classes, min(k, classes), values, bits)
    columns = encoding.encode(logits_of(seed, rows, classes, scale), digests(rows))
    declared = encoding.columns(rows)
    assert columns.keys() == declared.keys()
    for name, column in declared.items():
        assert columns[name].shape == column.sizes and columns[name].dtype == column.dtype, name
        assert len(column.dims) == len(column.sizes) and "row" in column.dims
        if name != "digest":
            absent = np.isnan(columns[name]) if np.isnan(column.fill) else columns[name] == column.fill
            assert not absent.any(), name


@given(case=CASE, kind=st.sampled_from(KINDS))
def test_the_hard_label_is_the_argmax_in_every_encoding(case: tuple[int, int, int, float], kind: str) -> None:
    seed, rows, classes, scale = case
    logits = logits_of(seed, rows, classes, scale)
    columns = Encoding(kind, classes, 1, "float16", 16).encode(logits, digests(rows))
    assert (columns["hard"] == logits.argmax(axis=1)).all()


@given(rows=st.integers(1, 9), bits=st.sampled_from([16, 32, 64]))
def test_digests_keep_their_low_bits(rows: int, bits: int) -> None:
    columns = Encoding("hard", 3, 1, "float16", bits).encode(logits_of(0, rows, 3, 1.0), digests(rows))
    assert [int(value) for value in columns["digest"]] == [int(value) % 2**bits for value in digests(rows)]


@given(case=CASE, tau=st.floats(0.3, 10.0))
def test_dense_gives_the_distribution_back(case: tuple[int, int, int, float], tau: float) -> None:
    seed, rows, classes, scale = case
    logits = logits_of(seed, rows, classes, scale)
    encoding = Encoding("dense", classes, 1, "float16", 16)
    columns = encoding.encode(logits, digests(rows))
    assert columns["logits"] == pytest.approx(logits, rel=2**-11, abs=1e-7)
    expanded = encoding.expand(columns, tau)
    assert expanded.dtype == np.float32 and expanded.shape == (rows, classes)
    assert expanded.sum(axis=1) == pytest.approx(np.ones(rows), abs=1e-5)
    step = float(abs(logits).max(initial=0)) * 2**-11 / tau  # rounding of float16, in the logit and in the sum
    assert expanded == pytest.approx(softmax(logits, tau), rel=2.5 * step + 1e-5, abs=1e-7)


@settings(max_examples=200)
@given(case=CASE, k=st.integers(1, 40))
def test_topk_keeps_its_classes_exact_mass_at_tau_one(case: tuple[int, int, int, float], k: int) -> None:
    seed, rows, classes, scale = case
    k = min(k, classes)
    logits, encoding = logits_of(seed, rows, classes, scale), Encoding("topk", classes, k, "float16", 16)
    columns = encoding.encode(logits, digests(rows))
    truth, expanded = softmax(logits), encoding.expand(columns, 1.0)
    index = columns["index"].T.astype(np.int64)
    kept, wanted = (np.take_along_axis(values, index, axis=1) for values in (expanded, truth))
    assert kept == pytest.approx(wanted, rel=1e-1, abs=2e-4) and abs(kept - wanted).max(initial=0) < 4e-3
    assert kept.sum(axis=1) == pytest.approx(wanted.sum(axis=1), abs=1e-6)
    if k < classes:
        tail = np.ones_like(expanded, dtype=bool)
        np.put_along_axis(tail, index, False, axis=1)
        rest = expanded[tail].reshape(rows, classes - k)
        assert rest == pytest.approx(np.repeat(rest[:, :1], classes - k, axis=1))  # spread evenly
        assert rest.sum(axis=1) == pytest.approx(
            truth[tail].reshape(rows, classes - k).sum(axis=1), rel=1e-4, abs=1e-6
        )


@given(case=CASE, k=st.integers(1, 40))
def test_topk_ranks_are_the_largest_logits_in_order(case: tuple[int, int, int, float], k: int) -> None:
    seed, rows, classes, scale = case
    logits, k = logits_of(seed, rows, classes, scale), min(k, classes)
    columns = Encoding("topk", classes, k, "float16", 16).encode(logits, digests(rows))
    below = -np.sort(-logits, axis=1)[:, :k] - logits.max(axis=1, keepdims=True)
    assert columns["value"].astype(float) == pytest.approx(below.T, rel=2**-7 + 2**-10, abs=1e-5)
    picked = np.take_along_axis(logits, columns["index"].T.astype(np.int64), axis=1)
    assert (picked == -np.sort(-logits, axis=1)[:, :k]).all()
    assert (columns["index"][0] == columns["hard"]).all()
    assert all(len(set(row)) == k for row in columns["index"].T.tolist())


@given(case=CASE, tau=st.floats(0.5, 10.0))
def test_topk_of_all_classes_is_the_whole_distribution(case: tuple[int, int, int, float], tau: float) -> None:
    seed, rows, classes, scale = case
    logits, encoding = logits_of(seed, rows, classes, scale), Encoding("topk", classes, classes, "float16", 16)
    expanded = encoding.expand(encoding.encode(logits, digests(rows)), tau)
    assert expanded == pytest.approx(softmax(logits, tau), abs=6e-3)


@given(case=CASE, k=st.integers(1, 40), tau=st.floats(0.5, 8.0), values=VALUES)
def test_no_class_left_out_is_likelier_than_one_kept(
    case: tuple[int, int, int, float], k: int, tau: float, values: str
) -> None:
    seed, rows, classes, scale = case
    logits = logits_of(seed, rows, classes, scale)
    encoding = Encoding("topk", classes, min(k, classes), values, 16)
    columns = encoding.encode(logits, digests(rows))
    expanded = encoding.expand(columns, tau)
    assert expanded.sum(axis=1) == pytest.approx(np.ones(rows), abs=1e-5)
    index = columns["index"].T.astype(np.int64)
    kept = np.take_along_axis(expanded, index, axis=1)
    assert (np.diff(kept, axis=1) <= 0).all()
    np.put_along_axis(expanded, index, 0, axis=1)
    assert (expanded <= kept[:, -1:]).all()


def test_a_confident_teachers_tail_is_not_lost_in_rounding() -> None:
    """Top-1 at 0.98: at tau 3 the other classes of 1000 keep the mass of the true tail."""
    logits = logits_of(0, 200, 1000, 1.2)
    logits[:, 0] = 15.0
    encoding = Encoding("topk", 1000, 10, "float16", 16)
    expanded, truth = encoding.expand(encoding.encode(logits, digests(200)), 3.0), softmax(logits, 3.0)
    divergence = (truth * np.log(truth / expanded)).sum(axis=1)
    assert softmax(logits)[:, 0].mean() > 0.99 and divergence.max() < 0.08


def test_a_confident_teacher_stays_confident() -> None:
    logits = np.array([[60.0, -60.0, -60.0, -60.0], [1e4, 0, 0, 0]], dtype=np.float32)
    for kind in ("topk", "dense"):
        encoding = Encoding(kind, 4, 2, "float16", 16)
        expanded = encoding.expand(encoding.encode(logits, digests(2)), 1.0)
        assert expanded[:, 0] == pytest.approx([1, 1], abs=1e-6)


def test_equal_logits_are_ranked_by_class() -> None:
    columns = Encoding("topk", 5, 3, "float16", 16).encode(np.zeros((2, 5), dtype=np.float32), digests(2))
    assert columns["index"].tolist() == [[0, 0], [1, 1], [2, 2]] and columns["hard"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("classes", "kind"),
    [
        (2, np.uint8),
        (255, np.uint8),
        (256, np.uint16),
        (65_535, np.uint16),
        (65_536, np.uint32),
        (100_000, np.uint32),
    ],
)
def test_labels_take_the_smallest_type_that_holds_them_and_absent(classes: int, kind: type) -> None:
    encoding = Encoding("topk", classes, 2, "float16", 16)
    columns = encoding.columns(1)
    assert columns["hard"].dtype == columns["index"].dtype == kind
    assert columns["hard"].fill == columns["index"].fill == np.iinfo(kind).max > classes - 1
    logits = np.zeros((1, classes), dtype=np.float32)
    logits[0, -1] = 1.0
    encoded = encoding.encode(logits, digests(1))
    assert encoded["hard"].tolist() == [classes - 1] and encoded["index"][:, 0].tolist() == [classes - 1, 0]
    assert encoding.expand(encoded, 1.0)[0, -1] == pytest.approx(softmax(logits)[0, -1], rel=5e-3)


@given(rows=st.lists(st.integers(0, 6), max_size=9), kind=st.sampled_from(KINDS))
def test_chosen_rows_expand_as_they_do_among_all(rows: list[int], kind: str) -> None:
    encoding = Encoding(kind, 5, 2, "float16", 16)
    columns = encoding.encode(logits_of(1, 7, 5, 2.0), digests(7))
    chosen = encoding.select_rows(columns, np.array(rows, dtype=np.int64))
    assert (chosen["hard"] == columns["hard"][rows]).all() and (chosen["digest"] == columns["digest"][rows]).all()
    if kind != "hard":
        assert (encoding.expand(chosen, 2.0) == encoding.expand(columns, 2.0)[rows]).all()


def test_hard_labels_alone_do_not_expand() -> None:
    encoding = Encoding("hard", 5, 2, "float16", 16)
    with pytest.raises(KeyError):
        encoding.expand(encoding.encode(logits_of(1, 7, 5, 2.0), digests(7)), 1.0)


def test_an_undecided_teachers_tail_is_not_lost_in_rounding() -> None:
    """Two classes at 0.5 each, as after mixup: their float16 errors would exceed the tail."""
    logits = logits_of(1, 200, 1000, 1.2)
    logits[:, :2] = 18.0
    encoding = Encoding("topk", 1000, 10, "float16", 16)
    expanded, truth = encoding.expand(encoding.encode(logits, digests(200)), 3.0), softmax(logits, 3.0)
    assert (truth * np.log(truth / expanded)).sum(axis=1).max() < 0.06


@given(case=CASE, k=st.integers(1, 40))
def test_topk_in_steps_is_the_distribution_to_half_a_step(case: tuple[int, int, int, float], k: int) -> None:
    seed, rows, classes, scale = case
    k = min(k, classes)
    logits = logits_of(seed, rows, classes, scale)
    encoding = Encoding("topk", classes, k, "uint8", 16)
    columns = encoding.encode(logits, digests(rows))
    assert columns["value"].dtype == np.uint8 and (columns["value"][0] == 0).all()
    truth, expanded = softmax(logits), encoding.expand(columns, 1.0)
    index = columns["index"].T.astype(np.int64)
    kept, wanted = (np.take_along_axis(values, index, axis=1) for values in (expanded, truth))
    assert kept == pytest.approx(wanted, rel=0.11, abs=1e-6)  # half a step, plus the rounding of the sum
    assert kept.sum(axis=1) == pytest.approx(wanted.sum(axis=1), abs=1e-5)  # the mass is exact


@given(case=CASE, tau=st.floats(0.5, 10.0))
def test_dense_in_steps_is_every_logit_to_half_a_step(case: tuple[int, int, int, float], tau: float) -> None:
    seed, rows, classes, scale = case
    logits = logits_of(seed, rows, classes, scale)
    encoding = Encoding("dense", classes, 0, "uint8", 16)
    columns = encoding.encode(logits, digests(rows))
    back = columns["logits"] * columns["scale"][:, None] + columns["offset"][:, None]
    assert (np.abs(back - logits) <= 0.501 * columns["scale"][:, None] + 1e-6).all()
    step = float(columns["scale"].max(initial=0)) / tau
    assert encoding.expand(columns, tau) == pytest.approx(softmax(logits, tau), rel=1.1 * step + 1e-4, abs=1e-7)


def test_a_row_of_equal_logits_is_even_in_every_encoding() -> None:
    logits = np.full((2, 4), -3.5, dtype=np.float32)
    for kind, values in (("topk", "float16"), ("topk", "uint8"), ("dense", "float16"), ("dense", "uint8")):
        encoding = Encoding(kind, 4, 2, values, 16)
        assert encoding.expand(encoding.encode(logits, digests(2)), 2.0) == pytest.approx(0.25, abs=1e-3)
