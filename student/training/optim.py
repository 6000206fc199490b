"""Optimizer and schedule, by timm's factories."""

from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import nn

from student.recipe import OptimSpec, ScheduleSpec
from teacher_cache.errors import RecipeError
from teacher_cache.models.network import unknown_to_timm


def create_optimizer(spec: OptimSpec, network: nn.Module) -> torch.optim.Optimizer:
    """Raises RecipeError for a name timm does not know, or cannot make here, and for arguments it refuses."""
    if spec.name not in list_optimizers():
        known, advice = map(str, list_optimizers()), "use adamw, lamb, sgd or another of timm's"
        raise unknown_to_timm("optim.name", spec.name, "optimizer", known, advice)
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            network,
            opt=spec.name,
            lr=spec.lr,
            weight_decay=spec.weight_decay,
            layer_decay=spec.layer_decay if spec.layer_decay < 1 else None,
            **spec.args,
        )
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"optim.args {spec.args} do not suit optimizer '{spec.name}': {reason}") from None
    except (AssertionError, ImportError) as error:  # some of timm's need a GPU or another package
        raise RecipeError(
            f"optim.name '{spec.name}' cannot be used here ({error}); use adamw, lamb or sgd"
        ) from None
    return optimizer


def create_schedule(spec: ScheduleSpec, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Any:
    """A timm scheduler that is moved by step_update(step), step counting from the run's begin."""
    if spec.warmup_epochs >= spec.epochs:
        raise RecipeError(
            f"schedule.warmup_epochs = {spec.warmup_epochs} leaves nothing of schedule.epochs = {spec.epochs}; "
            "lower the first or raise the second"
        )
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=spec.epochs,
        warmup_epochs=spec.warmup_epochs,
        warmup_lr=spec.warmup_lr,
        warmup_prefix=False,  # as DeiT: the cosine runs from the first step, warm-up covers its beginning
        min_lr=spec.min_lr,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return schedule
