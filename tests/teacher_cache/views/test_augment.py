import pytest
from facts import assert_facts
from timm.data import auto_augment as timm

from teacher_cache.config import parse_recipe
from teacher_cache.errors import RecipeError
from teacher_cache.rng import uniforms
from teacher_cache.views.augment import (
    ARGUMENTS,
    INCREASING_TRANSFORMS,
    LEVEL_DENOMINATOR,
    TRANSFORMS,
    RandAugment,
    color_jitter,
    parse_augment,
)
from teacher_cache.views.policy import ViewPolicy

MAGNITUDES = (0.0, 0.3, 2.5, 5.0, 7.7, 9.0, 10.0)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_magnitudes_become_timms_arguments(name: str) -> None:
    for magnitude in (*MAGNITUDES, 12.5, 20.0):
        ours = {ARGUMENTS[name](magnitude / LEVEL_DENOMINATOR, sign) for sign in (1.0, -1.0)}
        level = timm.LEVEL_TO_ARG[name]
        theirs = (
            {level(magnitude, {})[0] for _ in range(40)} if level else {0.0}
        )  # 40 draws, as timm draws the sign at random
        assert sorted(ours) == pytest.approx(sorted(theirs))


@pytest.mark.parametrize(
    "string",
    [
        "rand-m9-mstd0.5-inc1",  # timm's and DeiT's
        "rand-m7-mstd0.5-inc1",
        "rand-m6-mstd0.5-inc1",
        "rand-m9-n3-mstd0.5",
        "rand",
        "rand-m20-mmax30-n1-p0.7",
        "rand-mstd101",
        "rand-mstd1000-inc0",
        "rand-p1-inc1-m3",
    ],
)
def test_strings_are_read_as_timm_reads_them(string: str) -> None:
    ours, theirs = parse_augment(string), timm.rand_augment_transform(string, {})
    assert isinstance(ours, RandAugment) and theirs.choice_weights is None
    assert ours.names == tuple(op.name for op in theirs.ops) and ours.layers == theirs.num_layers
    for op in theirs.ops:
        assert (ours.magnitude, ours.probability, ours.std) == (op.magnitude, op.prob, op.magnitude_std)
        assert ours.maximum == (op.magnitude_max or timm._LEVEL_DENOM)


def test_an_empty_string_is_none() -> None:
    assert parse_augment("") is None


@pytest.mark.parametrize(
    "string",
    [
        "rand-m9-t3a",
        "rand-mstdinf",
        "rand-m9.5",
        "rand-m9-m8",
        "3a-mstd1",
        "rand-x3",
        "rand-m",
        "rand-",
        "augmix-m3",
        "v0",
        "rand-m9 -n2",
        "rand-m-3",
    ],
)
def test_string_unknown_to_timm_is_one_line_error(string: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_augment(string)
    assert_facts(caught.value, "views.auto_augment", f"'{string}'")
    assert "\n" not in str(caught.value)


def test_the_names_are_timms_sets() -> None:
    assert (
        list(TRANSFORMS) == timm._RAND_TRANSFORMS
        and list(INCREASING_TRANSFORMS) == timm._RAND_INCREASING_TRANSFORMS
    )


def test_jitter_stays_in_its_range_and_takes_all_orders() -> None:
    uniform = uniforms("test", "jitter")
    drawn = [color_jitter(0.3, uniform) for _ in range(500)]
    assert len({tuple(name for name, _, _ in steps) for steps in drawn}) == 6
    assert all(0.7 <= factor <= 1.3 for steps in drawn for _, factor, _ in steps)
    assert min(factor for _ in range(500) for _, factor, _ in color_jitter(2.0, uniform)) >= 0


@pytest.mark.parametrize(
    ("keys", "facts"),
    [
        ({"auto_augment": "rand-m9", "color_jitter": 0.4}, ["color_jitter", "0.4", "auto_augment", "rand-m9"]),
        ({"cutmix_minmax": [0.5, 0.51]}, ["cutmix_minmax", "0.5", "0.51"]),
        ({"cutmix": 0.0, "cutmix_minmax": [0.2, 0.8]}, ["cutmix_minmax", "cutmix", "1.0"]),
    ],
)
def test_a_policy_that_timm_would_read_otherwise_is_refused(keys: dict[str, object], facts: list[str]) -> None:
    plain = {"size": 32, "hflip": 0.5, "auto_augment": "", "re_prob": 0.0, "mixup": 0.0, "cutmix": 1.0}
    with pytest.raises(RecipeError) as caught:
        parse_recipe({**plain, **keys}, ViewPolicy, "the recipe")
    assert_facts(caught.value, "the recipe", *facts)
