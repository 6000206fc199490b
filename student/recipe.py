"""What `limbeck train` reads: one TOML file that is the experiment, for teachers and students alike."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from teacher_cache.network import EvalSpec, NetworkSpec
from teacher_cache.recipe import Count, Positive, Probability, Table, TeacherSpec, ViewPolicy

Rate = Annotated[float, Field(ge=0)]


class DataSpec(Table):
    """Shard indexes (or the folders that hold them) to train on and to measure on."""

    train: str
    val: str


class CacheRef(Table):
    """The cache a student learns from; its manifest fixes the views."""

    path: str
    teacher: str = ""
    """The timm name the cache's teacher must have; "" takes any."""


class LossSpec(Table):
    """Losses of DeiT, section 4. Hard: 1/2 CE(y) + 1/2 CE(y_t). Soft: (1 - balance) CE + balance tau^2 KL."""

    distillation: Literal["none", "soft", "hard"]
    smoothing: Probability
    """Of the true label only, never of the teacher's."""
    tau: Annotated[float, Field(gt=0)] | None = None
    balance: Probability | None = None
    """tau and balance are of the soft loss; an ablation of it to "none" may leave them standing."""

    @model_validator(mode="after")
    def _soft_has_its_numbers(self) -> "LossSpec":
        if self.distillation == "soft" and (self.tau is None or self.balance is None):
            raise ValueError('distillation = "soft" needs tau and balance')
        if self.distillation == "hard" and (self.tau is not None or self.balance is not None):
            raise ValueError('distillation = "hard" has no tau and no balance; remove them')
        return self

    @property
    def soft_tau(self) -> float | None:
        """The temperature of the soft targets; None where there are none."""
        return self.tau if self.distillation == "soft" else None


class OptimSpec(Table):
    """By timm's names; norms, biases, tokens and position embeddings are not decayed."""

    name: str
    lr: Annotated[float, Field(gt=0)]
    """The peak rate itself, not per 512 images."""
    weight_decay: Rate
    clip_grad: Rate = 0.0
    """Largest gradient norm; 0 for none."""


class ScheduleSpec(Table):
    """Linear warm-up, then a half cosine, step by step."""

    epochs: Positive
    warmup_epochs: Count
    warmup_lr: Rate
    min_lr: Rate


class TrainSpec(Table):
    """batch: views in a global batch. streams: slices of it, which processes and workers share out."""

    batch: Positive
    streams: Positive = 8
    accumulate: Positive = 1
    """Micro-batches of a step on each process; the step is the whole batch's, BatchNorm's statistics are not."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the moving average of the weights, which is evaluated beside them; 0 for none."""
    targets: Literal["cached", "live"] = "cached"
    """"live" has the teacher judge every batch in the loop: the cache's own, or the one in [teacher]."""
    sync_batchnorm: bool = False
    """Of several GPUs: BatchNorm's statistics are those of the batches of all of them."""
    seed: Count = 0
    """Names the dice for initial weights and stochastic depth; views have their own seeds."""
    evaluate_every: Positive = 1


class MachineSpec(Table):
    """How this machine does the work. Nothing here changes a batch; it may change between two halves of a run."""

    workers: Count = 1
    """Processes that prepare views, for each process that trains."""
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 by torch's autocast; weights, gradients and losses stay float32."""
    compile: bool = False
    """torch.compile the student; its minutes are worth it on a GPU."""
    checkpoint_every: Count = 0
    """Steps between checkpoints; 0 for one at each epoch's end, where there is one anyway."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where the journal also goes, beside its file; each is installed by the extra of its name."""
    keep: Positive = 2

    """Checkpoints that are kept: so many of the last, and the one of the best accuracy."""


class TrainRecipe(Table):
    """What `limbeck train` reads. With [cache] the manifest gives the views; without it, [views] does."""

    data: DataSpec
    model: NetworkSpec
    views: ViewPolicy | None = None
    cache: CacheRef | None = None
    teacher: TeacherSpec | None = None
    """For live targets without a cache."""
    loss: LossSpec
    optim: OptimSpec
    schedule: ScheduleSpec
    train: TrainSpec
    eval: EvalSpec
    machine: MachineSpec = MachineSpec()

    @model_validator(mode="after")
    def _views_and_targets_have_a_source(self) -> "TrainRecipe":
        if self.teacher is not None and (self.cache is not None or self.train.targets != "live"):
            raise ValueError('[teacher] is for train.targets = "live" without a [cache]; remove it')
        if self.train.targets == "live" and self.cache is None and self.teacher is None:
            raise ValueError(
                'train.targets = "live" needs a teacher; add a [cache], whose own it is, or a [teacher]'
            )
        if self.cache is None and self.teacher is None and self.loss.distillation != "none":
            raise ValueError(f'distillation = "{self.loss.distillation}" needs a [cache] with path = "..."')
        if self.cache is None and self.views is None:
            raise ValueError("[views] is missing; add it, or a [cache] whose manifest has it")
        return self
