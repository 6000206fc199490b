import pytest
from facts import assert_facts
from hypothesis import given
from hypothesis import strategies as st
from timm.utils.misc import natural_key

from teacher_cache.packing.classes.class_order import log_number_order, sort_classes


@given(st.sets(st.text(st.sampled_from("ab019_."), min_size=1, max_size=5)))
def test_numeric_order_is_that_of_timm(names: set[str]) -> None:
    order = sort_classes(names, numeric=True)
    assert [natural_key(name) for name in order] == sorted(map(natural_key, names))
    assert sort_classes(names, numeric=False) == sorted(names)


@pytest.mark.parametrize(
    ("names", "facts"),
    [
        ([str(number) for number in range(12)], ["class 2", "'10'", "'2'", "--numeric"]),
        (["1.cat", "2.dog", "10.bird"], ["class 1", "'10.bird'", "'2.dog'", "--numeric"]),
        (["class9", "class10"], ["class 0", "'class10'", "'class9'", "--numeric"]),
        ([f"{number:02d}" for number in range(12)], []),
        (["c0", "c1", "c9"], []),
        (["001.ak47", "010.beer", "100.hawksbill"], []),
        (["cat", "dog"], []),
    ],
)
def test_another_order_by_number_is_reported(
    names: list[str], facts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    log_number_order(tuple(sorted(names)))
    err = capsys.readouterr().err
    assert_facts(err, *facts)
    assert bool(err) == bool(facts)


@pytest.mark.parametrize(
    ("names", "numeric", "facts"),
    [
        (["1", "2", "5"], False, ["class 0", "'1'"]),
        (["0", "1", "5"], False, ["class 2", "'5'"]),
        (["001", "002"], False, ["class 0", "'001'"]),
        (["2", "10"], True, ["class 0", "'2'"]),
        (["-1", "0", "1"], True, ["class 2", "'-1'", "'1'", "--classes"]),  # as in timm
        (["1.cat", "2.dog"], False, []),
        (["000", "001", "002"], False, []),
        ([str(number) for number in range(12)], True, ["class 2", "'2'"]),
    ],
)
def test_numbers_that_are_not_the_class_numbers_are_reported(
    names: list[str], numeric: bool, facts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    log_number_order(tuple(sort_classes(names, numeric)))
    err = capsys.readouterr().err
    assert_facts(err, *facts)
    assert bool(err) == bool(facts)


def test_an_order_of_the_users_own_is_not_reported(capsys: pytest.CaptureFixture[str]) -> None:
    log_number_order(("2", "10", "1"))
    assert not capsys.readouterr().err
