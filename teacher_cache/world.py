"""Where the work runs: this process's rank among its peers, and its device."""

from dataclasses import dataclass

import torch

from teacher_cache.errors import RecipeError


@dataclass(frozen=True)
class World:
    """This process among `size` that share one job; rank in 0..size-1."""

    rank: int = 0
    size: int = 1


def pick_device(name: str) -> torch.device:
    """ "auto" is the first GPU where there is one, else the CPU; anything else is torch's own name."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except Exception as error:  # each of torch's backends fails in its own way
        reason = str(error).partition("\n")[0]
        raise RecipeError(f"device '{name}' cannot be used here ({reason}); use auto or cpu") from None
    return device
