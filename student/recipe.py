"""The recipe of `limbeck train`: one TOML file that defines the training of a teacher or a student."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from teacher_cache.config import Count, Plain, Positive, Probability, Table
from teacher_cache.console import log_line
from teacher_cache.disk_cache.decoded_cache import DecodedCacheSpec
from teacher_cache.disk_cache.shard_cache import ShardCacheSpec
from teacher_cache.errors import RecipeError
from teacher_cache.models.spec import MEAN, STD, Dtype, EvalSpec, Mean, NetworkSpec, Std, TeacherSpec
from teacher_cache.views.policy import ViewPolicy

NonNegative = Annotated[float, Field(ge=0)]
OLD_INIT_FROM = "start"
"""The name of model.init_from in 0.1.0; removed in 0.3."""


class DataSpec(Table):
    """Shards: index files, or folders or URLs with an index."""

    train: str
    """Shards to train on."""
    val: str
    """Shards to evaluate on."""


class ModelSpec(NetworkSpec):
    """The network and its initial weights."""

    init_from: str = ""
    """Initial weights: a bundle, a finished run, or a timm model with its pretrained weights; "" for random
    weights. The position embedding is resized to `args.img_size`, e.g. from 224 to 384 px."""
    new_classes: bool = False
    """Use new heads, for other classes than those of `init_from` (transfer learning)."""
    mean: Mean = MEAN
    """Mean of the input by channel, for pixels in 0..1."""
    std: Std = STD
    """Standard deviation of the input by channel, for pixels in 0..1."""

    @model_validator(mode="after")
    def _check_init_from(self) -> "ModelSpec":
        if self.init_from and self.pretrained:
            raise ValueError(f"pretrained = true with init_from = '{self.init_from}'; remove one of them")
        if self.new_classes and not self.init_from:
            raise ValueError("new_classes = true needs init_from; add init_from or remove new_classes")
        return self


def with_init_from(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored recipe, or a table of stored recipes, with the old key model.start renamed to model.init_from."""
    tables = {name: with_init_from(value) if isinstance(value, dict) else value for name, value in stored.items()}
    model = tables.get("model")
    if not isinstance(model, dict):
        return tables
    return tables | {"model": {"init_from" if key == OLD_INIT_FROM else key: model[key] for key in model}}


class CacheRef(Table):
    """The cache of a student. Its manifest defines the views."""

    path: str
    """Folder or URL of the cache."""
    teacher: str = ""
    """Required timm name of the cache's teacher; "" accepts any."""
    also: tuple[str, ...] = ()
    """Caches of other teachers with the same views. The targets are the mean of all teachers."""
    weights: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Relative weights of the teachers in that mean: `path`, then `also`. [] is equal weights."""
    mean_of: Literal["probabilities", "logits"] = "probabilities"
    """Average probabilities or logits. The hard label is the top class of the mean."""

    @model_validator(mode="after")
    def _check_weights(self) -> "CacheRef":
        if self.weights and len(self.weights) != len(self.paths):
            raise ValueError(
                f"weights has {len(self.weights)} entries for {len(self.paths)} caches; give one for each cache"
            )
        if duplicates := [path for path in self.paths if self.paths.count(path) > 1]:
            raise ValueError(f"cache '{duplicates[0]}' is given twice; remove it from also and raise its weight")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all caches: `path`, then `also`."""
        return (self.path, *self.also)

    @property
    def normalized_weights(self) -> tuple[float, ...]:
        """The weights of the caches, which sum to 1."""
        weights = self.weights or (1.0,) * len(self.paths)
        return tuple(weight / sum(weights) for weight in weights)


class LossSpec(Table):
    """The loss (DeiT, section 4). L: `criterion`, y: true label, y_t: the teacher's class."""

    distillation: Literal["none", "soft", "hard", "truth"]
    """"hard": 1/2 L(y) + 1/2 L(y_t). "soft": (1 - balance) L(y) + balance tau^2 KL. "truth": 1/2 L(y) + 1/2 L(y),
    one per head (the ablation with two class tokens). "none": L(y)."""
    head: Literal["distill", "class"] = "distill"
    """The head that learns from the teacher; "class" for networks with one head ("class token only" in DeiT)."""
    smoothing: Probability
    """Label smoothing of the true label. The teacher's label is never smoothed."""
    criterion: Literal["cross-entropy", "bce"] = "cross-entropy"
    """"bce": binary cross-entropy, averaged over images and classes (RSB, section 2)."""
    bce_targets: Literal["multi-label", "soft"] | None = None
    """Targets of "bce" for a mixed image: 1 for each of its classes (RSB), or their mixing weights."""
    bce_threshold: Probability | None = None
    """Smoothed soft targets above it become 1, the others 0 (timm's target_threshold)."""
    tau: Annotated[float, Field(gt=0)] | None = None
    """Temperature of the soft loss. Not used with distillation = "none"."""
    balance: Probability | None = None
    """Weight of the teacher in the soft loss. Not used with distillation = "none"."""
    kl: Literal["batchmean", "reference"] = "batchmean"
    """Average of the soft loss: over images (the paper), or over images and classes (DeiT's code)."""

    @model_validator(mode="after")
    def _check_soft(self) -> "LossSpec":
        if self.distillation == "soft" and (self.tau is None or self.balance is None):
            raise ValueError('distillation = "soft" needs tau and balance')
        if self.distillation == "hard" and (self.tau is not None or self.balance is not None):
            raise ValueError(
                'distillation = "hard" uses neither tau nor balance; remove them (--set loss.tau= removes a key)'
            )
        return self

    @model_validator(mode="after")
    def _check_head(self) -> "LossSpec":
        if self.distillation == "truth" and self.head == "class":
            raise ValueError('distillation = "truth" trains the distillation head; remove head = "class"')
        if self.distillation == "soft" and self.head == "class" and self.criterion == "bce":
            raise ValueError(
                'criterion = "bce" and distillation = "soft" cannot share the class head: "bce" needs one '
                'probability per class, "soft" a distribution; use head = "distill" or distillation = "hard"'
            )
        return self

    @model_validator(mode="after")
    def _check_bce(self) -> "LossSpec":
        if self.criterion == "bce" and self.bce_targets is None:
            raise ValueError('criterion = "bce" needs bce_targets = "multi-label" or "soft"')
        if self.criterion != "bce" and (self.bce_targets or self.bce_threshold is not None):
            raise ValueError(
                'bce_targets and bce_threshold need criterion = "bce"; add it or remove them '
                "(--set loss.bce_targets= removes a key)"
            )
        if self.bce_threshold is not None and self.bce_targets != "soft":
            raise ValueError('bce_threshold needs bce_targets = "soft"; set it or remove bce_threshold')
        return self

    @property
    def soft_tau(self) -> float | None:
        """The temperature of the soft targets; None without a soft loss."""
        return self.tau if self.distillation == "soft" else None

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss uses a teacher's targets."""
        return self.distillation in ("soft", "hard")

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that the loss trains."""
        class_only = self.distillation == "none" or self.head == "class"
        return ("class",) if class_only else ("class", "distill")


class OptimSpec(Table):
    """The optimizer. Norms, biases, tokens and position embeddings have no weight decay."""

    name: str
    """An optimizer of timm: adamw, lamb, sgd ..."""
    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate of the whole batch (not per 512 images)."""
    weight_decay: NonNegative
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of each layer, as a fraction of the next layer's; 1 is the same rate for all."""
    args: Plain = Field(default_factory=dict)
    """Other arguments of the optimizer: eps, betas, momentum ..."""
    clip_grad: NonNegative = 0.0
    """Maximum gradient norm; 0 disables clipping."""


class ScheduleSpec(Table):
    """Learning rate: linear warm-up, then half a cosine, updated at each step."""

    epochs: Positive
    """Epochs in all, warm-up included."""
    warmup_epochs: Count
    warmup_lr: NonNegative
    """Learning rate at the first step."""
    min_lr: NonNegative
    """Learning rate at the end."""


class TrainSpec(Table):
    """The training loop. No key here depends on the machine."""

    batch: Positive
    """Views in a global batch, over all processes."""
    streams: Positive = 8
    """Slices of the global batch. The number of processes must divide it."""
    accumulate: Positive = 1
    """Micro-batches per step in each process. Gradients are those of the whole batch, BatchNorm's statistics are
    not."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the moving average of the weights (EMA), which is also evaluated; 0 disables it."""
    targets: Literal["cached", "live"] = "cached"
    """"live": run the teacher (the cache's, or the one in [teacher]) on every batch."""
    sync_batchnorm: bool = False
    """Compute BatchNorm's statistics over all GPUs."""
    seed: Count = 0
    """Seed of the initial weights, dropout, stochastic depth and order; without a cache also of the views."""
    evaluate_every: Positive = 1
    """Epochs between evaluations. The last epoch is always evaluated."""


class MachineSpec(DecodedCacheSpec, ShardCacheSpec):
    """The machine. No key here changes a batch, and all may change when a run is resumed."""

    workers: Count | None = None
    """Data loader processes per training process, at most one per stream. 0: none, it loads its batches itself.
    Unset: 1 on a CPU, and beside a GPU one for each core of the process but one."""
    device: str = "auto"
    """"auto" (a GPU if there is one), or a device name of torch: "cpu", "cuda:1" ..."""
    dtype: Dtype = "float32"
    """Precision of steps and evaluations. "tf32" lets a GPU round the factors of convolutions and matrix products
    to TF32; "bfloat16" uses torch's autocast. Weights, gradients and losses stay float32."""
    compile: bool = False
    """Use torch.compile, which takes minutes; useful on a GPU."""
    cudnn_benchmark: bool = False
    """Let cuDNN time its convolutions and use the fastest, on a GPU. The last bits may differ from run to run."""
    checkpoint_every: Count = 0
    """Steps between checkpoints, in addition to the one after each epoch; 0 for none."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Trackers that also receive the journal: pip install 'limbeck[tensorboard]' ..."""
    keep: Positive = 2
    """Number of latest checkpoints to keep, in addition to the one with the best accuracy."""


class TrainRecipe(Table):
    """The recipe of `limbeck train`. The views are those of the [cache], or [views] without a cache."""

    data: DataSpec
    model: ModelSpec
    views: ViewPolicy | None = None
    cache: CacheRef | None = None
    teacher: TeacherSpec | None = None
    """The teacher for train.targets = "live" without a [cache]."""
    loss: LossSpec
    optim: OptimSpec
    schedule: ScheduleSpec
    train: TrainSpec
    eval: EvalSpec
    machine: MachineSpec = MachineSpec()

    @classmethod
    def with_current_keys(cls, tables: dict[str, Any]) -> dict[str, Any]:
        model = tables.get("model")
        if not isinstance(model, dict) or OLD_INIT_FROM not in model:
            return tables
        old = f"model.{OLD_INIT_FROM}"
        if "init_from" in model:
            raise RecipeError(f"{old} is the old name of model.init_from, and both are given; remove {old}")
        log_line(f"{old} is the old name of model.init_from and will be removed in 0.3; use model.init_from")
        return with_init_from(tables)

    @classmethod
    def wrong_kind_hint(cls, tables: dict[str, Any]) -> str:
        cache, views = tables.get("cache"), tables.get("views")
        if isinstance(cache, dict) and "encoding" in cache and "optim" not in tables:
            return "is a recipe of 'limbeck cache build'; give a recipe of 'limbeck train'"
        known = ViewPolicy.model_fields
        required = {name for name in known if known[name].is_required()}
        if cache and isinstance(views, dict) and views.keys() <= known.keys() and required - views.keys():
            keys = ", ".join(f"views.{name}" for name in views)
            return f"has a [cache], which defines the views; remove {keys}, or set it in the recipe of the cache"
        return ""

    @model_validator(mode="after")
    def _check_sources(self) -> "TrainRecipe":
        if self.teacher is not None and (self.cache is not None or self.train.targets != "live"):
            raise ValueError('[teacher] is for train.targets = "live" without a [cache]; remove it')
        if self.train.targets == "live" and self.cache is None and self.teacher is None:
            raise ValueError('train.targets = "live" needs a teacher; add a [cache] or a [teacher]')
        if self.train.targets == "live" and self.cache is not None and self.cache.also:
            raise ValueError('train.targets = "live" supports one teacher; remove cache.also')
        if self.cache is None and self.teacher is None and self.loss.needs_teacher:
            raise ValueError(f'distillation = "{self.loss.distillation}" needs a [cache] with path = "..."')
        if self.cache is None and self.views is None:
            raise ValueError("[views] is missing; add [views] or a [cache]")
        return self
