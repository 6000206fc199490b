"""What `limbeck train` reads: one TOML file that is the experiment, for teachers and students alike."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from teacher_cache.config import Count, Plain, Positive, Probability, Table
from teacher_cache.console import log_line
from teacher_cache.data.shard_cache import ShardCacheSpec
from teacher_cache.errors import RecipeError
from teacher_cache.models.spec import EvalSpec, NetworkSpec, TeacherSpec
from teacher_cache.views.policy import ViewPolicy

Rate = Annotated[float, Field(ge=0)]
OLD_INIT_FROM = "start"
"""The name of model.init_from in 0.1.0; to be removed in the next version."""


class DataSpec(Table):
    """Shard indexes (or the folders that hold them) to train on and to measure on."""

    train: str
    val: str


class ModelSpec(NetworkSpec):
    """A network and its initial weights."""

    init_from: str = ""
    """Initial weights: a bundle, a finished run, or a timm model with its pretrained weights; "" for random
    weights. The position embedding is resized to `args.img_size`, e.g. from 224 to 384 px."""
    new_classes: bool = False
    """Start with new heads, for other classes than those of `init_from` (transfer)."""

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
    """The cache a student learns from; its manifest fixes the views."""

    path: str
    teacher: str = ""
    """The timm name the cache's teacher must have; "" takes any."""
    also: tuple[str, ...] = ()
    """Other teachers' caches over the same views; the student learns from all teachers' mean."""
    weights: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Of `path` and `also`, in that order, relative to each other; [] weighs them alike."""
    mean_of: Literal["probabilities", "logits"] = "probabilities"
    """What is averaged. The hard label is the class that the mean puts first."""

    @model_validator(mode="after")
    def _check_weights(self) -> "CacheRef":
        if self.weights and len(self.weights) != len(self.paths):
            raise ValueError(
                f"weights has {len(self.weights)} entries for {len(self.paths)} caches; give each one"
            )
        if duplicates := [path for path in self.paths if self.paths.count(path) > 1]:
            raise ValueError(f"cache '{duplicates[0]}' is named twice; give it a weight instead")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        """Of all caches, the first one's first."""
        return (self.path, *self.also)

    @property
    def normalized_weights(self) -> tuple[float, ...]:
        """The caches' weights, as parts of one."""
        weights = self.weights or (1.0,) * len(self.paths)
        return tuple(weight / sum(weights) for weight in weights)


class LossSpec(Table):
    """What the heads learn, L being `criterion`, y the truth and y_t the teacher's class (DeiT, section 4)."""

    distillation: Literal["none", "soft", "hard", "truth"]
    """Hard: 1/2 L(y) + 1/2 L(y_t). Soft: (1 - balance) L(y) + balance tau^2 KL. Truth: 1/2 L(y) + 1/2 L(y), a head
    each (the ablation with two class tokens). None: L(y)."""
    head: Literal["distill", "class"] = "distill"
    """The head that hears the teacher; "class" for networks of one head, and for rows "class token only"."""
    smoothing: Probability
    """Of the true label only, never of the teacher's."""
    criterion: Literal["cross-entropy", "bce"] = "cross-entropy"
    """"bce": binary cross-entropy, the mean over images and classes (RSB, section 2)."""
    bce_targets: Literal["multi-label", "soft"] | None = None
    """Of a mixed image: each of its classes is 1 (as RSB), or each has its share."""
    bce_threshold: Probability | None = None
    """Soft targets, smoothed, become 1 above it and 0 below: timm's target_threshold."""
    tau: Annotated[float, Field(gt=0)] | None = None
    balance: Probability | None = None
    """tau and balance are of the soft loss; an ablation of it to "none" may leave them standing."""
    kl: Literal["batchmean", "reference"] = "batchmean"
    """The soft loss's mean: over images, as in the paper, or over images and classes, as in DeiT's own code."""

    @model_validator(mode="after")
    def _check_soft(self) -> "LossSpec":
        if self.distillation == "soft" and (self.tau is None or self.balance is None):
            raise ValueError('distillation = "soft" needs tau and balance')
        if self.distillation == "hard" and (self.tau is not None or self.balance is not None):
            raise ValueError(
                'distillation = "hard" has no tau and no balance; remove them (--set loss.tau= removes a key)'
            )
        return self

    @model_validator(mode="after")
    def _check_head(self) -> "LossSpec":
        if self.distillation == "truth" and self.head == "class":
            raise ValueError('distillation = "truth" trains the distillation head; remove head = "class"')
        if self.distillation == "soft" and self.head == "class" and self.criterion == "bce":
            raise ValueError(
                'criterion = "bce" and distillation = "soft" on the same head: one reads it class by class, the '
                'other as a distribution; use head = "distill" or distillation = "hard"'
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
            raise ValueError('bce_threshold is of soft targets; set bce_targets = "soft" or remove it')
        return self

    @property
    def soft_tau(self) -> float | None:
        """The temperature of the soft targets; None where there are none."""
        return self.tau if self.distillation == "soft" else None

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is heard at all."""
        return self.distillation in ("soft", "hard")

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that are trained."""
        class_only = self.distillation == "none" or self.head == "class"
        return ("class",) if class_only else ("class", "distill")


class OptimSpec(Table):
    """By timm's names; norms, biases, tokens and position embeddings are not decayed."""

    name: str
    lr: Annotated[float, Field(gt=0)]
    """The peak rate itself, not per 512 images."""
    weight_decay: Rate
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each layer's rate is this share of the next one's; 1 for all alike."""
    args: Plain = Field(default_factory=dict)
    """More of the optimizer's own arguments: eps, betas, momentum ..."""
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
    """Names the dice for initial weights, stochastic depth and the order; without a cache for the views, too."""
    evaluate_every: Positive = 1


class MachineSpec(ShardCacheSpec):
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
    model: ModelSpec
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

    @classmethod
    def with_current_keys(cls, tables: dict[str, Any]) -> dict[str, Any]:
        model = tables.get("model")
        if not isinstance(model, dict) or OLD_INIT_FROM not in model:
            return tables
        old = f"model.{OLD_INIT_FROM}"
        if "init_from" in model:
            raise RecipeError(f"{old} is the old name of model.init_from, and both are given; remove {old}")
        log_line(f"{old} is deprecated and will not be read by the next version; use model.init_from")
        return with_init_from(tables)

    @classmethod
    def mistaken(cls, tables: dict[str, Any]) -> str:
        cache, views = tables.get("cache"), tables.get("views")
        if isinstance(cache, dict) and "encoding" in cache and "optim" not in tables:
            return "is one for 'limbeck cache build', where a training's is needed"
        known = ViewPolicy.model_fields
        required = {name for name in known if known[name].is_required()}
        if cache and isinstance(views, dict) and views.keys() <= known.keys() and required - views.keys():
            return "has a cache, which fixes the views; remove " + (
                f"{', '.join(f'views.{name}' for name in views)}, or set it in the cache's own recipe"
            )
        return ""

    @model_validator(mode="after")
    def _check_sources(self) -> "TrainRecipe":
        if self.teacher is not None and (self.cache is not None or self.train.targets != "live"):
            raise ValueError('[teacher] is for train.targets = "live" without a [cache]; remove it')
        if self.train.targets == "live" and self.cache is None and self.teacher is None:
            raise ValueError(
                'train.targets = "live" needs a teacher; add a [cache], whose own it is, or a [teacher]'
            )
        if self.train.targets == "live" and self.cache is not None and self.cache.also:
            raise ValueError('train.targets = "live" is for one teacher; remove cache.also')
        if self.cache is None and self.teacher is None and self.loss.needs_teacher:
            raise ValueError(f'distillation = "{self.loss.distillation}" needs a [cache] with path = "..."')
        if self.cache is None and self.views is None:
            raise ValueError("[views] is missing; add it, or a [cache] whose manifest has it")
        return self
