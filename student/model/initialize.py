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
    theirs, known, source = _open(spec.init_from)
    where = f"model.init_from '{spec.init_from}'"
    if (theirs.mean, theirs.std) != (spec.mean, spec.std):
        raise RecipeError(
            f"{where} has seen images normalised with mean {theirs.mean} and std {theirs.std}, not {spec.mean} "
            f"and {spec.std}; set model.mean and model.std to its own"
        )
    _check_patches(network, source, where)
    state, fresh = source.state_dict(), network.state_dict()
    if spec.new_classes:
        state |= {name: tensor for name, tensor in fresh.items() if name.startswith(_head_names(network))}
    else:
        _check_classes(known, classes, where)
    if "pos_embed" in fresh and "pos_embed" in state:
        state["pos_embed"] = _resized(state["pos_embed"], source, network)
    _check_layers(state, fresh, where, f"model '{spec.name}'")
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
    made: Any = timm.get_pretrained_cfg(init_from)
    colours = tuple(made.mean), tuple(made.std)
    spec = NetworkSpec(name=init_from, pretrained=True, mean=colours[0], std=colours[1])
    return spec, made.num_classes, create_network(spec, made.num_classes)


def _check_classes(known: int | tuple[str, ...], classes: tuple[str, ...], where: str) -> None:
    if known in (classes, len(classes)):
        return
    advice = "set model.new_classes = true to give it new heads"
    count = known if isinstance(known, int) else len(known)
    if isinstance(known, int) or count != len(classes):
        raise RecipeError(f"{where} knows {count} classes, the shards have {len(classes)}; {advice}")
    number = next(number for number, pair in enumerate(zip(known, classes, strict=True)) if pair[0] != pair[1])
    raise RecipeError(
        f"{where} calls class {number} '{known[number]}', the shards call it '{classes[number]}'; {advice}"
    )


def _check_patches(network: Any, source: Any, where: str) -> None:
    there, here = (getattr(getattr(one, "patch_embed", None), "patch_size", None) for one in (source, network))
    if there and here and there != here:
        raise RecipeError(
            f"{where} has patches of {there[0]} x {there[1]} pixels, the recipe's model of {here[0]} x {here[1]}; "
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


def _check_layers(state: State, fresh: State, where: str, ours: str) -> None:
    for name in (*fresh, *state):
        there, here = (tuple(side[name].shape) if name in side else "absent" for side in (state, fresh))
        if there != here:
            raise RecipeError(
                f"{where} does not fit {ours}: '{name}' is {there} there and {here} here; give model.name and "
                "model.args as the start has them"
            )


def _head_names(network: Any) -> tuple[str, ...]:
    """The prefixes of the classifiers' parameters."""
    heads = network.get_classifier()
    heads = heads if isinstance(heads, tuple) else (heads,)
    return tuple(f"{name}." for name, part in network.named_modules() if any(part is head for head in heads))
