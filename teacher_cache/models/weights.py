"""Network weights on disk."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from teacher_cache.errors import RunError
from teacher_cache.models.card import CARD_NAME, Card, load_card
from teacher_cache.models.network import create_network
from teacher_cache.storage.atomic import atomic_folder, json_bytes

WEIGHTS_NAME, LABELS_NAME = "model.safetensors", "labels.txt"


def weights_sha256(state: dict[str, Tensor]) -> str:
    """One hash of all tensors, with their names, types and shapes; where they are stored does not matter."""
    whole = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def save_network(folder: Path, card: Card, state: dict[str, Tensor]) -> None:
    """Write card, labels and weights as a folder that appears whole; raises RunError where there is one."""
    with new_folder(folder) as temporary:
        write_network(temporary, card, state)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which then appears whole; raises RunError where there is one already."""
    try:
        with atomic_folder(folder) as temporary:
            yield temporary
    except FileExistsError:
        raise RunError(f"'{folder}' is there already; remove it or choose another folder") from None


def write_network(folder: Path, card: Card, state: dict[str, Tensor]) -> None:
    """Write card, labels and weights into a folder that is there."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    (folder / WEIGHTS_NAME).write_bytes(save(plain))  # save_file's own files are their owner's alone to read
    (folder / CARD_NAME).write_bytes(json_bytes(card.model_dump(mode="json")))
    (folder / LABELS_NAME).write_text("\n".join(card.classes) + "\n")


def load_weights(folder: Path, card: Card) -> dict[str, Tensor]:
    """The weights beside a card; raises RunError where they are missing, damaged, or another network's."""
    path = folder / WEIGHTS_NAME
    try:
        state: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise RunError(f"'{path}' is missing; export the model anew") from None
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # it may be gone by now
        raise RunError(f"'{path}' is damaged: {error}; export the model anew") from None
    if weights_sha256(state) != card.sha256:
        raise RunError(f"'{path}' is not the file its card was written for (sha256 differs); export it anew")
    return state


def load_network(folder: Path) -> tuple[Card, nn.Module]:
    """The network of a folder, in evaluation mode on the CPU; raises RunError for any misfit."""
    card = load_card(folder)
    state = load_weights(folder, card)
    network = create_network(card.network.model_copy(update={"pretrained": False}), len(card.classes))
    fill(network, state, str(folder / WEIGHTS_NAME))
    return card, network.eval()


def fill(network: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load weights that must fit wholly; raises RunError naming the first misfit."""
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{where} does not fit the network: {reason}") from None
