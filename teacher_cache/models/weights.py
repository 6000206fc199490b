"""Network weights on disk (safetensors), with a card and labels, checked by sha256."""

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
    """Hexadecimal sha256 of all tensors: names, dtypes, shapes and values, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_network(folder: Path, card: Card, state: dict[str, Tensor]) -> None:
    """Write a folder with card, labels and weights atomically. Raises RunError if the folder exists."""
    with new_folder(folder) as temporary:
        write_network(temporary, card, state)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that then becomes `folder` atomically. Raises RunError if `folder` exists."""
    try:
        with atomic_folder(folder) as temporary:
            yield temporary
    except FileExistsError:
        raise RunError(f"'{folder}' already exists; remove it or choose another folder") from None


def write_network(folder: Path, card: Card, state: dict[str, Tensor]) -> None:
    """Write card, labels and weights into an existing folder."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    (folder / WEIGHTS_NAME).write_bytes(save(tensors))  # save_file's files are readable only by their owner
    (folder / CARD_NAME).write_bytes(json_bytes(card.model_dump(mode="json")))
    (folder / LABELS_NAME).write_text("\n".join(card.classes) + "\n", "utf-8", "backslashreplace")


def load_weights(folder: Path, card: Card) -> dict[str, Tensor]:
    """The weights of a card's folder. Raises RunError if they are missing or damaged or do not match the card."""
    path = folder / WEIGHTS_NAME
    try:
        state: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise RunError(f"'{path}' is missing; export the model again") from None
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise RunError(f"'{path}' is damaged: {error}; export the model again") from None
    if weights_sha256(state) != card.sha256:
        raise RunError(f"'{path}' does not match its card (sha256 differs); export the model again")
    return state


def load_network(folder: Path) -> tuple[Card, nn.Module]:
    """Card and network of a folder, in evaluation mode on the CPU.

    Raises RunError if a file is missing or damaged, or if card and weights do not match.
    """
    card = load_card(folder)
    state = load_weights(folder, card)
    network = create_network(card.network.model_copy(update={"pretrained": False}), len(card.classes))
    load_state(network, state, str(folder / WEIGHTS_NAME))
    return card, network.eval()


def load_state(network: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load weights into a network. Raises RunError if names or shapes do not match. where: path in the message."""
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{where} does not match the network: {reason}") from None
