"""Optimizer and schedule, created with timm's factories."""

import inspect
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import nn

from student.recipe import OptimSpec, ScheduleSpec
from teacher_cache.errors import RecipeError
from teacher_cache.models.network import unknown_name_error


def create_optimizer(spec: OptimSpec, network: nn.Module) -> torch.optim.Optimizer:
    """Create timm's optimizer. Raises RecipeError if its name or arguments are invalid, or it cannot run here."""
    if spec.name not in list_optimizers():
        known, advice = map(str, list_optimizers()), "use adamw, lamb, sgd or another optimizer of timm"
        raise unknown_name_error("optim.name", spec.name, "optimizer", known, advice)
    try:
        fused = {} if "foreach" in spec.args else fused_argument(spec.name, next(network.parameters()).device)
        arguments = fused | spec.args
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            network,
            opt=spec.name,
            lr=spec.lr,
            weight_decay=spec.weight_decay,
            layer_decay=spec.layer_decay if spec.layer_decay < 1 else None,
            **arguments,
        )
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"optim.args {spec.args} are invalid for optimizer '{spec.name}': {reason}") from None
    except (AssertionError, ImportError) as error:  # some need a GPU or another package
        raise RecipeError(
            f"optim.name '{spec.name}' cannot be used on this machine ({error}); use adamw, lamb or sgd"
        ) from None
    return optimizer


def fused_argument(name: str, device: torch.device) -> dict[str, Any]:
    """{"fused": True} if the optimizer has one kernel for all weights on this device, else {}."""
    on_gpu = device.type == "cuda"
    known = inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters
    return {"fused": True} if on_gpu and "fused" in known else {}


def create_schedule(spec: ScheduleSpec, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Any:
    """Create timm's scheduler. Its step_update(step) takes the step since the start of the run, from 0.

    Raises RecipeError if the warm-up is not shorter than the run.
    """
    if spec.warmup_epochs >= spec.epochs:
        raise RecipeError(
            f"schedule.warmup_epochs = {spec.warmup_epochs} must be less than schedule.epochs = "
            f"{spec.epochs}; lower warmup_epochs or raise epochs"
        )
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=spec.epochs,
        warmup_epochs=spec.warmup_epochs,
        warmup_lr=spec.warmup_lr,
        warmup_prefix=False,  # as in DeiT: warm-up replaces the start of the cosine
        min_lr=spec.min_lr,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return schedule
