import math

import pytest
import torch
from facts import assert_facts
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.optim import list_optimizers
from torch import nn

from student.recipe import OptimSpec, ScheduleSpec
from student.training.optim import create_optimizer, create_schedule, fused_argument
from teacher_cache.errors import RecipeError
from teacher_cache.models.network import create_network
from teacher_cache.models.spec import NetworkSpec

DEIT = NetworkSpec(
    name="deit_tiny_distilled_patch16_224",
    args={"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2},
)
RESNET = NetworkSpec(name="resnet10t", args={"stem_type": "", "channels": [8, 8, 16, 16]}, small_stem=True)
TOKENS = {"pos_embed", "cls_token", "dist_token"}


@pytest.mark.parametrize("spec", [DEIT, RESNET], ids=lambda spec: spec.name)
@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd"])
def test_all_but_norms_biases_tokens_and_position_embeddings_are_decayed(spec: NetworkSpec, name: str) -> None:
    network = create_network(spec, 3)
    optimizer = create_optimizer(OptimSpec(name=name, lr=0.1, weight_decay=0.05), network)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    norms = {
        id(p)
        for part in network.modules()
        if isinstance(part, nn.LayerNorm | nn.BatchNorm2d)
        for p in part.parameters()
    }
    seen = set()
    for key, parameter in network.named_parameters():
        no_decay = id(parameter) in norms or key.endswith(".bias") or key in TOKENS
        assert decay.pop(id(parameter)) == (0 if no_decay else 0.05), key
        seen.add((no_decay, key in TOKENS))
    assert not decay
    assert {(True, False), (False, False)} <= seen
    assert ((True, True) in seen) == (spec is DEIT)


@pytest.mark.parametrize(("name", "fused"), [("adamw", True), ("sgd", True), ("lamb", False), ("lion", False)])
def test_an_optimizer_of_torch_is_fused_on_a_gpu_only(name: str, fused: bool) -> None:
    assert fused_argument(name, torch.device("cpu")) == {}
    assert fused_argument(name, torch.device("cuda")) == ({"fused": True} if fused else {})
    create_optimizer(
        OptimSpec(name=name, lr=0.1, weight_decay=0, args={"fused": True} if fused else {}), nn.Linear(2, 2)
    )


@pytest.mark.filterwarnings("ignore")  # some of timm's recommend other packages
def test_every_timm_optimizer_is_created_or_refused_in_one_line() -> None:
    network, refused = nn.Linear(2, 2), []
    for name in list_optimizers():
        try:
            create_optimizer(OptimSpec(name=name, lr=0.1, weight_decay=0.05), network)
        except RecipeError as error:
            assert f"'{name}'" in str(error) and "\n" not in str(error)
            refused.append(name)
    assert not {"adamw", "lamb", "sgd", "adan", "lion", "muon"} & set(refused)


def test_an_unknown_optimizer_is_refused_by_name() -> None:
    with pytest.raises(RecipeError) as raised:
        create_optimizer(OptimSpec(name="adamq", lr=0.1, weight_decay=0), nn.Linear(2, 2))
    assert_facts(raised.value, "optim.name", "'adamq'", "radam")


@settings(max_examples=20, deadline=None)
@given(
    epochs=st.integers(2, 30),
    warmup=st.integers(0, 5),
    steps=st.integers(1, 20),
    lr=st.floats(1e-3, 1),
    warmup_lr=st.floats(0, 1e-3),
    min_lr=st.floats(0, 1e-3),
)
def test_the_learning_rate_rises_linearly_and_falls_as_a_half_cosine(
    epochs: int, warmup: int, steps: int, lr: float, warmup_lr: float, min_lr: float
) -> None:
    warmup = min(warmup, epochs - 1)
    spec = ScheduleSpec(epochs=epochs, warmup_epochs=warmup, warmup_lr=warmup_lr, min_lr=min_lr)
    optimizer = create_optimizer(OptimSpec(name="adamw", lr=lr, weight_decay=0), nn.Linear(2, 2))
    schedule = create_schedule(spec, optimizer, steps)
    for step in range(epochs * steps):
        schedule.step_update(step)
        if step < warmup * steps:
            expected = warmup_lr + (lr - warmup_lr) * step / (warmup * steps)
        else:
            expected = min_lr + (lr - min_lr) * (1 + math.cos(math.pi * step / (epochs * steps))) / 2
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(expected, abs=1e-12)


def test_a_warmup_as_long_as_the_run_is_refused() -> None:
    spec = ScheduleSpec(epochs=5, warmup_epochs=5, warmup_lr=0, min_lr=0)
    optimizer = create_optimizer(OptimSpec(name="adamw", lr=0.1, weight_decay=0), nn.Linear(2, 2))
    with pytest.raises(RecipeError) as raised:
        create_schedule(spec, optimizer, 10)
    assert_facts(raised.value, "schedule.warmup_epochs", "schedule.epochs", 5)


def test_layer_decay_scales_each_layers_rate_throughout_the_schedule() -> None:
    network = create_network(DEIT, 3)
    optimizer = create_optimizer(OptimSpec(name="adamw", lr=0.1, weight_decay=0.05, layer_decay=0.5), network)
    schedule = create_schedule(ScheduleSpec(epochs=4, warmup_epochs=1, warmup_lr=0.0, min_lr=0.0), optimizer, 10)
    depth = {"cls_token": 0, "patch_embed": 0, "blocks.0": 1, "blocks.1": 2, "norm": 2, "head": 3, "head_dist": 3}
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for step in (5, 10, 39):
        schedule.step_update(step)
        rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert rates.keys() == set(names.values())
        for start, layer in depth.items():
            found = {rate for name, rate in rates.items() if name == start or name.startswith(f"{start}.")}
            assert list(found) == [pytest.approx(rates["head.weight"] * 0.5 ** (3 - layer))]
        assert rates["head.weight"] > 0
    no_decay = {
        names[id(p)] for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]
    }
    assert no_decay >= TOKENS and "head.weight" not in no_decay and "norm.weight" in no_decay


def test_optimizer_arguments_are_passed_on_and_unknown_ones_refused_in_one_line() -> None:
    network = nn.Linear(2, 2)
    adam = OptimSpec(name="adamw", lr=0.1, weight_decay=0, args={"eps": 1e-7, "betas": [0.9, 0.95]})
    assert create_optimizer(adam, network).defaults["eps"] == 1e-7
    sgd = OptimSpec(name="sgd", lr=0.1, weight_decay=0, args={"momentum": 0.8})
    assert create_optimizer(sgd, network).defaults["momentum"] == 0.8
    with pytest.raises(RecipeError) as raised:
        create_optimizer(OptimSpec(name="adamw", lr=0.1, weight_decay=0, args={"epsilon": 1}), network)
    assert_facts(raised.value, "optim.args", "adamw", "'epsilon'")
