"""Initial weights of a network: from a bundle, a finished run or timm's pretrained models.

The position embedding is resized for another image size (DeiT, section 5). For other classes the heads are new.
"""

from pathlib import Path
from typing import Any

import timm
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from student.recipe import ModelSpec
from teacher_cache.errors import RecipeError
from teacher_cache.models.network import create_network
from teacher_cache.models.run_folder import network_folder
from teacher_cache.models.spec import NetworkSpec
from teacher_cache.models.weights import load_network, load_state

State = dict[str, Tensor]


def initialize_from(network: nn.Module, spec: ModelSpec, classes: tuple[str, ...]) -> None:
    """Load the weights that `spec.init_from` names into a new network; "" leaves it unchanged.

    classes: names by label, from the shards. Raises RecipeError if classes, patch size, mean and std, or layers
    differ, and RunError for an unfinished or damaged folder.
    """
    if not spec.init_from:
        return
    source_spec, source_classes, source = _open(spec.init_from)
    where = f"model.init_from '{spec.init_from}'"
    if (source_spec.mean, source_spec.std) != (spec.mean, spec.std):
        raise RecipeError(
            f"{where} was trained with mean {source_spec.mean} and std {source_spec.std}, the recipe has "
            f"{spec.mean} and {spec.std}; copy the source's values to model.mean and model.std"
        )
    _check_patches(network, source, where)
    state, target_state = source.state_dict(), network.state_dict()
    if spec.new_classes:
        state |= {name: tensor for name, tensor in target_state.items() if name.startswith(_head_names(network))}
    else:
        _check_classes(source_classes, classes, where)
    if "pos_embed" in target_state and "pos_embed" in state:
        state["pos_embed"] = _resized(state["pos_embed"], source, network)
    _check_layers(state, target_state, where, f"model '{spec.name}'")
    load_state(network, state, where)


def _open(init_from: str) -> tuple[NetworkSpec, int | tuple[str, ...], nn.Module]:
    """The specification, the classes (only their number for timm's models) and the network of a source."""
    if Path(init_from).is_dir():
        card, network = load_network(network_folder(Path(init_from)))
        return card.network, card.classes, network
    if not timm.is_model(init_from):
        raise RecipeError(
            f"model.init_from '{init_from}' is neither a folder nor a timm model; correct the path or the name"
        )
    pretrained_cfg: Any = timm.get_pretrained_cfg(init_from)
    mean, std = tuple(pretrained_cfg.mean), tuple(pretrained_cfg.std)
    spec = NetworkSpec(name=init_from, pretrained=True, mean=mean, std=std)
    return spec, pretrained_cfg.num_classes, create_network(spec, pretrained_cfg.num_classes)


def _check_classes(source_classes: int | tuple[str, ...], classes: tuple[str, ...], where: str) -> None:
    if source_classes in (classes, len(classes)):
        return
    advice = "set model.new_classes = true to train new heads"
    count = source_classes if isinstance(source_classes, int) else len(source_classes)
    if isinstance(source_classes, int) or count != len(classes):
        raise RecipeError(f"{where} has {count} classes, the shards have {len(classes)}; {advice}")
    pairs = zip(source_classes, classes, strict=True)
    label, (theirs, ours) = next((label, pair) for label, pair in enumerate(pairs) if pair[0] != pair[1])
    raise RecipeError(f"{where}: class {label} is '{theirs}', in the shards it is '{ours}'; {advice}")


def _check_patches(network: Any, source: Any, where: str) -> None:
    target_size, source_size = (
        getattr(getattr(x, "patch_embed", None), "patch_size", None) for x in (network, source)
    )
    if source_size and target_size and source_size != target_size:
        raise RecipeError(
            f"{where} has patches of {source_size[0]} x {source_size[1]} pixels, the recipe's model has "
            f"{target_size[0]} x {target_size[1]}; set model.args.patch_size to {source_size[0]}"
        )


def _resized(embedding: Tensor, source: Any, network: Any) -> Tensor:
    """A position embedding (1, tokens + patches, width) resized to the network's grid of patches.

    The embeddings of the class and distillation tokens are unchanged. Bicubic without antialiasing, as in DeiT's
    code.
    """
    old_grid, new_grid = list(source.patch_embed.grid_size), list(network.patch_embed.grid_size)
    if old_grid == new_grid:
        return embedding
    tokens = 0 if source.no_embed_class else source.num_prefix_tokens
    resized: Tensor = resample_abs_pos_embed(
        embedding, new_grid, old_size=old_grid, num_prefix_tokens=tokens, antialias=False
    )
    return resized


def _check_layers(source: State, target: State, where: str, target_name: str) -> None:
    for name in (*target, *source):
        source_shape, target_shape = (
            tuple(state[name].shape) if name in state else "absent" for state in (source, target)
        )
        if source_shape != target_shape:
            raise RecipeError(
                f"{where} does not match {target_name}: '{name}' is {source_shape} in the source and "
                f"{target_shape} in the model; set model.name and model.args as in the source"
            )


def _head_names(network: Any) -> tuple[str, ...]:
    """The prefixes of the classifiers' parameter names."""
    heads = network.get_classifier()
    heads = heads if isinstance(heads, tuple) else (heads,)
    return tuple(f"{name}." for name, part in network.named_modules() if any(part is head for head in heads))
