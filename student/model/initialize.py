"""Where a network's weights begin: a bundle, a finished run, or timm's pretrained ones; at another size of images
(DeiT, section 5) and, at a wish, for other classes."""

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
from teacher_cache.models.weights import fill, load_network

State = dict[str, Tensor]


def initialize_from(network: nn.Module, spec: ModelSpec, classes: tuple[str, ...]) -> None:
    """Fill a fresh network with the weights that `spec.init_from` names; with "" it is left as it is.

    classes: names by label, as the shards have them. Raises RecipeError where classes, patches, colours or
    layers do not fit, RunError for an unfinished or damaged folder.
    """
    if not spec.init_from:
        return
    source_spec, source_classes, source = _open(spec.init_from)
    where = f"model.init_from '{spec.init_from}'"
    if (source_spec.mean, source_spec.std) != (spec.mean, spec.std):
        raise RecipeError(
            f"{where} has seen images normalised with mean {source_spec.mean} and std {source_spec.std}, not {spec.mean} "
            f"and {spec.std}; set model.mean and model.std to its own"
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
    fill(network, state, where)


def _open(init_from: str) -> tuple[NetworkSpec, int | tuple[str, ...], nn.Module]:
    """What it is, the classes it knows (of timm's networks only their number), and the network."""
    if Path(init_from).is_dir():
        card, network = load_network(network_folder(Path(init_from)))
        return card.network, card.classes, network
    if not timm.is_model(init_from):
        raise RecipeError(
            f"model.init_from '{init_from}' is neither a folder nor a model of timm; train it, or check the name"
        )
    pretrained_cfg: Any = timm.get_pretrained_cfg(init_from)
    mean_and_std = tuple(pretrained_cfg.mean), tuple(pretrained_cfg.std)
    spec = NetworkSpec(name=init_from, pretrained=True, mean=mean_and_std[0], std=mean_and_std[1])
    return spec, pretrained_cfg.num_classes, create_network(spec, pretrained_cfg.num_classes)


def _check_classes(source_classes: int | tuple[str, ...], classes: tuple[str, ...], where: str) -> None:
    if source_classes in (classes, len(classes)):
        return
    advice = "set model.new_classes = true to give it new heads"
    count = source_classes if isinstance(source_classes, int) else len(source_classes)
    if isinstance(source_classes, int) or count != len(classes):
        raise RecipeError(f"{where} knows {count} classes, the shards have {len(classes)}; {advice}")
    number = next(
        number for number, pair in enumerate(zip(source_classes, classes, strict=True)) if pair[0] != pair[1]
    )
    raise RecipeError(
        f"{where} calls class {number} '{source_classes[number]}', the shards call it '{classes[number]}'; {advice}"
    )


def _check_patches(network: Any, source: Any, where: str) -> None:
    source_size, target_size = (
        getattr(getattr(one, "patch_embed", None), "patch_size", None) for one in (source, network)
    )
    if source_size and target_size and source_size != target_size:
        raise RecipeError(
            f"{where} has patches of {source_size[0]} x {source_size[1]} pixels, the recipe's model of {target_size[0]} x {target_size[1]}; "
            "set model.args.patch_size to its own"
        )


def _resized(embedding: Tensor, source: Any, network: Any) -> Tensor:
    """A position embedding (1, tokens + patches, width) for the network's grid of patches; its tokens are kept.

    Bicubic without antialiasing, as DeiT's own code does it.
    """
    grids = [list(one.patch_embed.grid_size) for one in (source, network)]
    if grids[0] == grids[1]:
        return embedding
    tokens = 0 if source.no_embed_class else source.num_prefix_tokens
    resized: Tensor = resample_abs_pos_embed(
        embedding, grids[1], old_size=grids[0], num_prefix_tokens=tokens, antialias=False
    )
    return resized


def _check_layers(source: State, target: State, where: str, target_name: str) -> None:
    for name in (*target, *source):
        source_shape, target_shape = (
            tuple(side[name].shape) if name in side else "absent" for side in (source, target)
        )
        if source_shape != target_shape:
            raise RecipeError(
                f"{where} does not fit {target_name}: '{name}' is {source_shape} there and {target_shape} here; give model.name and "
                "model.args as the start has them"
            )


def _head_names(network: Any) -> tuple[str, ...]:
    """The prefixes of the classifiers' parameters."""
    heads = network.get_classifier()
    heads = heads if isinstance(heads, tuple) else (heads,)
    return tuple(f"{name}." for name, part in network.named_modules() if any(part is head for head in heads))
