"""The training step, and the state that it changes: student, moving average, optimizer."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import convert_sync_batchnorm
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from student.data.batch import Batch, Truth
from student.model.stochastic_depth import StochasticDepth
from student.model.student import Heads, Student
from student.recipe import TrainRecipe
from student.training.loss import Losses, distill_loss
from student.training.optim import create_optimizer
from student.training.out_of_memory import explain_out_of_memory, oom_message
from teacher_cache.config import Plain
from teacher_cache.distributed.collectives import all_reduce_mean, broadcast, broadcast_tensors
from teacher_cache.distributed.device import autocast, backend_flags
from teacher_cache.distributed.world import World
from teacher_cache.errors import RecipeError
from teacher_cache.models.teacher import Teacher


class Learner:
    """A student in training, with its moving average and optimizer. The student can be evaluated between steps."""

    def __init__(
        self,
        recipe: TrainRecipe,
        student: Student,
        classes: int,
        teacher: Teacher | None = None,
        world: World = World(),
    ) -> None:
        """student: on its device. teacher: labels each batch in the step, instead of the cached targets."""
        self._recipe, self._classes, self._teacher, self._world = recipe, classes, teacher, world
        _check_batch(recipe, world)
        self._device = next(student.parameters()).device
        if recipe.train.sync_batchnorm and world.size > 1:
            student.network = _with_sync_batchnorm(student.network, self._device)
        self._stochastic_depth = StochasticDepth(student.network, recipe.train.batch, recipe.train.seed)
        self.student = student
        if student.two_headed and "distill" not in recipe.loss.heads:  # this head has no loss
            student.network.get_submodule("head_dist").requires_grad_(False)
        self.ema = ModelEmaV3(student, decay=recipe.train.ema) if recipe.train.ema else None
        self.optimizer = create_optimizer(recipe.optim, student.network)
        if recipe.machine.compile:
            # torch cuts the graph at DDP's buckets, so that gradients overlap; an evaluation at another size has
            # a graph of its own instead of one for all sizes
            student.compile(dynamic=False)
            if self.ema:
                self.ema.module.compile(dynamic=False)
            if teacher:
                teacher.network.compile()
        if teacher:
            teacher.cudnn_benchmark = recipe.machine.cudnn_benchmark
        self._model: nn.Module = self._distributed() if world.size > 1 else student
        self._rows = _process_rows(recipe, world)

    def learn(self, batch: Batch, step: int) -> Tensor:
        """Train one step; returns the (3,) losses of the global batch: total, class head, distillation head.

        Dropout uses torch's global generator, which the caller seeds. Raises RunError, naming what to lower, if
        the device runs out of memory.
        """
        machine = self._recipe.machine
        with explain_out_of_memory(self._oom_message), backend_flags(machine.dtype, machine.cudnn_benchmark):
            return self._learn(batch, step)

    def _learn(self, batch: Batch, step: int) -> Tensor:
        recipe, sums = self._recipe, torch.zeros(3, device=self._device)
        self.student.train()
        self.optimizer.zero_grad(set_to_none=True)
        micro_batches = recipe.train.accumulate
        factors = self._stochastic_depth.draw(step, self._rows, self._device).chunk(micro_batches, dim=1)
        for number, micro_batch in enumerate(batch.to(self._device).split(micro_batches)):
            last = number == micro_batches - 1
            self._stochastic_depth.set(factors[number])
            with self._no_sync(not last):
                losses = self._forward(micro_batch)
                (losses.total / micro_batches).backward()
            sums += torch.stack([losses.total, losses.on_class, losses.on_distill]).detach() / micro_batches
        if recipe.optim.clip_grad:
            nn.utils.clip_grad_norm_(self.student.parameters(), recipe.optim.clip_grad)
        self.optimizer.step()
        if self.ema:
            self.ema.update(self.student, step + 1)
        return all_reduce_mean(self._world, sums)

    def _forward(self, batch: Batch) -> Losses:
        pixels, truth = batch.on(self._device, self._classes)
        if self._teacher:
            truth = labeled(self._teacher, pixels, truth, self._recipe.loss.soft_tau)
        with autocast(self._device, self._recipe.machine.dtype):
            heads = self._model(pixels)
        return distill_loss(Heads(*(logits.float() for logits in heads)), truth, self._recipe.loss)

    def networks(self) -> dict[str, Student]:
        """The networks to evaluate: "raw" and, with a moving average, "ema".

        All processes call this, which makes their BatchNorm statistics those of rank 0, as the next step would.
        """
        networks = {"raw": self.student} | ({"ema": self.ema.module} if self.ema else {})
        broadcast_tensors(self._world, [buffer for network in networks.values() for buffer in network.buffers()])
        return networks

    @property
    def lr(self) -> float:
        """The largest learning rate of the optimizer's groups."""
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    def check(self, step: int) -> None:
        """Raise FloatingPointError, in every process, if a weight is NaN or infinite after `step` steps."""
        networks = (self.student.network, self.ema.module.network) if self.ema else (self.student.network,)
        names, weights = zip(*(pair for network in networks for pair in network.named_parameters()), strict=True)
        finite = torch.stack([weight.isfinite().all() for weight in weights]).tolist()  # one wait for the device
        bad = next((name for name, is_finite in zip(names, finite, strict=True) if not is_finite), "")
        if bad := broadcast(self._world, bad):
            raise FloatingPointError(f"weight '{bad}' is NaN or infinite after step {step:,}")

    def state(self) -> Plain:
        """The state that a step changes, for torch.save."""
        ema = self.ema.module.network.state_dict() if self.ema else None
        return {
            "network": self.student.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": ema,
        }

    def load(self, state: Plain) -> None:
        """Restore a state of the same recipe."""
        self.student.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.module.network.load_state_dict(state["ema"])

    def _distributed(self) -> DistributedDataParallel:
        """Average gradients over the processes. The running statistics of BatchNorm are those of rank 0."""
        devices = [self._device] if self._device.type == "cuda" else None
        return DistributedDataParallel(self.student, devices, gradient_as_bucket_view=True)

    def _no_sync(self, enabled: bool) -> AbstractContextManager[None]:
        """If enabled, backward accumulates gradients without synchronizing the processes."""
        model: Any = self._model
        return model.no_sync() if enabled and self._world.size > 1 else nullcontext()

    def _oom_message(self) -> str:
        recipe = self._recipe
        return oom_message(self._device, recipe.train, recipe.machine, self._world.size)


def labeled(teacher: Teacher, pixels: Tensor, truth: Truth, tau: float | None) -> Truth:
    """Return the truth with a teacher's targets for mixed pixels (B, 3, H, W). tau: None gives no soft targets."""
    logits = teacher(pixels).clone()  # autograd cannot save tensors made in inference mode
    soft = None if tau is None else (logits / tau).softmax(dim=1)
    return replace(truth, hard=logits.argmax(dim=1), soft=soft)


def _check_batch(recipe: TrainRecipe, world: World) -> None:
    batch, micro_batches = recipe.train.batch, world.size * recipe.train.accumulate
    if batch % micro_batches:
        message = f"train.batch = {batch} must be a multiple of train.accumulate = {recipe.train.accumulate}"
        raise RecipeError(message if world.size == 1 else f"{message} times the {world.size} processes")


def _process_rows(recipe: TrainRecipe, world: World) -> NDArray[np.int64]:
    """The indices of this process's views in the global batch; it has the streams rank, rank + size, ..."""
    streams = np.arange(recipe.train.batch).reshape(recipe.train.streams, -1)
    return streams[world.rank :: world.size].ravel()


def _with_sync_batchnorm(network: nn.Module, device: torch.device) -> nn.Module:
    if device.type != "cuda":
        raise RecipeError(f"train.sync_batchnorm = true needs GPUs, but the device is {device}; set it to false")
    convert: Callable[[nn.Module], nn.Module] = (
        convert_sync_batchnorm  # torch's function drops the activation of timm's norm layers
    )
    return convert(network)
