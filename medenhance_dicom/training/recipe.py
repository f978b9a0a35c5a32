"""Training recipes: `pipelines/train/*.toml` as frozen values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from medenhance_dicom.errors import RecipeError
from medenhance_dicom.tables import checked, read_table


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _known_degradation(name: str) -> str:
    from medenhance_dicom.training.degradation import DEGRADATIONS

    if name not in ("none", *DEGRADATIONS):
        raise ValueError(f"no such model; there are none, {', '.join(DEGRADATIONS)}")
    return name


Degradation = Annotated[str, AfterValidator(_known_degradation)]
"""The name of a seeded degradation model, or "none"."""


class Pictures(_Table):
    """Which picture files make up one side of the data."""

    folder: str
    """Folder below the data root, of pictures or of DICOM files."""
    pattern: str = "*"
    """Glob inside the folder; where nothing in the folder itself fits, in all folders below it."""
    table: str | list[str] | None = None
    """CSV with a `file` column; only the files that it names are taken. Of several the first decides, and the others
    add columns, which are empty where they lack a file."""
    column: str | None = None
    """Column of the table that is compared as a number."""
    at_least: float | None = None
    """Keep the rows whose column is at least this."""
    at_most: float | None = None
    """Keep the rows whose column is at most this."""
    where: dict[str, str | list[str]] = {}
    """Keep the rows whose column has this text, or one of these: `{ tier = "low" }`."""
    unless: dict[str, str | list[str]] = {}
    """Leave out the rows whose column has this text, or one of these."""
    drop: str | None = None
    """Leave out the rows in which this column holds something, such as `same_picture_as` of doubles."""
    group: str | None = None
    """Column that tells patients or sequences apart; "file", which needs no table: every file is its own. None: the
    Patient ID of DICOM files, the folder below `folder` that a file lies in, or a sequence or person that the names of
    the sets at hand tell; else every file is its own."""
    part: Literal["train", "validate", "test"] | None = None
    """Keep the groups of this part. Where a group lies follows from its name alone, so that no patient is in two parts,
    whatever else is chosen and in whichever recipe."""
    fractions: tuple[float, float, float] = (0.6, 0.15, 0.25)
    """Of all groups that each part has, on average."""
    split: str = ""
    """Goes before a group's name where its part is found: another word, another split."""
    first: float = 0.0
    """Keep the files from this fraction of the sorted list on; sequences lie together in it."""
    last: float = 1.0
    """Keep the files before this fraction of the sorted list."""
    minimum_brightness: float = 0.0
    """Leave out pictures whose field of view is darker than this mean of [0, 1]."""

    @model_validator(mode="after")
    def _check_table(self) -> Self:
        named = [name for name in ("column", "where", "unless", "drop", "group") if getattr(self, name)]
        if named and not self.table and (named != ["group"] or self.group != "file"):
            raise ValueError(f"{', '.join(named)}: of which table?")
        if abs(sum(self.fractions) - 1) > 1e-6 or min(self.fractions) < 0:
            raise ValueError("fractions: the three do not add up to 1")
        return self


class Data(_Table):
    """What is learned from. Paths are relative to the data root (`--data`, else `MEDENHANCE_DATA`)."""

    channels: Literal[1, 3]
    size: int
    """Side in pixels of the square pictures that the networks see."""
    low: list[Pictures]
    """Low-quality pictures, unpaired."""
    high: list[Pictures]
    """High-quality pictures, unpaired."""
    pairs_low: list[Pictures] = []
    """Low-quality halves of pixel-aligned pairs; empty: pairs are made by degrading `high`."""
    pairs_high: list[Pictures] = []
    """The other halves, in the same order."""
    degradation: Degradation = "none"
    """Seeded degradation model that makes pairs from high-quality pictures."""
    degraded_fraction: float = 0.5
    """How many of the pairs are made by degradation where real ones exist too."""
    unchanged_fraction: float = 0.15
    """How many of the pairs are a good picture and itself."""
    flatten: float = 0.0
    """How much of the slow shading (an exponent) is taken out of the target of a degraded colour pair."""
    relit_fraction: float = 0.0
    """How many of the pairs are a real low-quality picture and itself with flatter light, less veil and more detail."""
    validation_low: list[Pictures] = []
    """The pixel-aligned other halves of `validation_high`, in the same order and of the same names; of the quality task
    pictures of low quality."""
    validation_high: list[Pictures]
    """Good pictures never trained on; without `validation_low` they are degraded with fixed seeds."""
    validation_poor: list[Pictures] = []
    """Real poor pictures never trained on, of which no better ones exist: scored by measures (`training.poor`), against
    those of `validation_high`."""


class Network(_Table):
    """The configurations of generator, discriminator and guide encoder."""

    generator: Literal["resunet", "resnet9"] = "resunet"
    """Of the methods with a cycle."""
    width: int = 64
    layout: Literal["figure", "released"] = "figure"
    head: Literal["tanh", "gain", "normalised_gain", "fields"] = "tanh"
    """HQG-Net's own "tanh" is a Sigmoid."""
    discriminator_width: int = 64
    start: Path | None = None
    """Safetensors that the kept network starts from, such as another run's `best.safetensors`."""
    stem: Literal["full", "light"] = "full"
    """HQG-Net: "full" is the paper's preset, "light" has torchvision's strides."""
    norm: Literal["batch", "instance"] = "batch"
    """HQG-Net's encoder."""
    adaptive: Literal["adalin", "adain", "adaln"] = "adalin"
    """HQG-Net's normalisation in VIN."""
    guidance: Literal["guided", "learned", "none"] = "guided"
    """HQG-Net: by an encoded picture, by a learned vector, or not at all."""
    guide_width: int = 64
    """HQG-Net's guide encoder, a ResNet-18."""
    guide_size: int = 256
    """Side in pixels of the pictures that the guide encoder sees."""


_CYCLE = frozenset({
    "adversarial", "cycle", "identity", "illumination", "structure", "perceptual", "lassim", "paired"
})  # fmt: skip
TERMS: dict[str, frozenset[str]] = {
    "stillgan": _CYCLE,
    "cyclegan": _CYCLE - {"illumination", "structure"},
    "lamegan": _CYCLE - {"illumination", "structure"},
    "miinet": _CYCLE - {"illumination", "structure"},
    "hqgnet": frozenset({"adversarial", "haar", "content", "lassim", "paired"}),
    "enlightengan": frozenset({"adversarial", "perceptual", "lassim", "paired"}),
    "fields": frozenset(),
}
"""The loss terms that a method has; a task alone has none of `Weights`."""


class Weights(_Table):
    """Weights of the loss terms, in the papers' symbols. A term with weight 0 is not computed."""

    adversarial: float = 1.0
    """HQG-Net: lambda_2."""
    cycle: float = 10.0
    """StillGAN: lambda_1."""
    identity: float = 5.0
    """StillGAN: lambda_2."""
    illumination: float = 1.0
    """StillGAN: alpha."""
    structure: float = 5.0
    """StillGAN: beta."""
    perceptual: float = 0.0
    """LaMEGAN: 0.25, MIINet: 0.5; EnlightenGAN: 1, self feature preserving."""
    haar: float = 1.0
    """HQG-Net: of L_Haar with the mean norm; the paper does not say which norm it takes."""
    haar_bands: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """HQG-Net: factors on the vertical, horizontal and diagonal detail."""
    haar_levels: int = 1
    content: float = 10.0
    """HQG-Net: lambda_1, of L_FC."""
    balance: bool = False
    """HQG-Net: the weights of Haar and content say how hard they pull at the enhanced picture in comparison to the
    adversarial term: at each step both are scaled to its gradient's norm there."""
    paired: float = 0.0
    """Mean |G_A(x) - y| on pairs during the unpaired stage; 0 in the papers."""
    lassim: float = 0.0
    """1 - LaSSIM(x, G_A(x)), in both stages; 0 in the papers."""
    gan_mode: Literal["lsgan", "bce"] = "lsgan"
    patches: tuple[int, ...] = (48, 96)
    """Block sizes of the illumination loss."""
    crop: int | None = 384
    """Side of the window for illumination and structure losses."""


class FieldLook(_Table):
    """What a picture in one look is to have; `training.field_losses` measures it."""

    vessel_depth: float
    """Of poor pictures, and of all in the even look. The measure's square sees about .93 of the metric's disc."""
    colour_distance: float
    """At most, in deviations of the camera's good pictures."""
    structure: float
    """Correlation of vessels' octaves with the source's, at least."""
    chroma_spread: float
    """At most this share of the source's."""
    contrast_to_noise: float
    """Of poor pictures, at least this many times the source's."""
    unevenness: float = 0.0
    """At most; of the even look alone."""


class FieldTerms(_Table):
    """Weights of the terms of method "fields"."""

    paired: float = 4.0
    """Mean |x_hat - x|."""
    colour: float = 0.04
    """The same of low-pass L*, a*, b*."""
    detail: float = 8.0
    """The same of the octaves of vessels."""
    vessel_depth: float = 6.0
    colour_distance: float = 1.5
    structure: float = 4.0
    chroma_spread: float = 0.3
    unevenness: float = 3.0
    contrast_to_noise: float = 0.5
    seen: float = 0.1
    """Confidence against what the degradation left to be seen."""
    smooth: float = 0.02
    """How much the gain of detail differs over the field."""


class FieldAims(_Table):
    """Of method "fields"."""

    natural: FieldLook = FieldLook(
        vessel_depth=0.335, colour_distance=0.2, structure=0.975, chroma_spread=0.85, contrast_to_noise=1.35
    )
    even: FieldLook = FieldLook(
        vessel_depth=0.40, colour_distance=0.0, structure=0.95, chroma_spread=0.15, contrast_to_noise=1.45,
        unevenness=0.034,
    )  # fmt: skip
    terms: FieldTerms = FieldTerms()


class Perceptual(_Table):
    """The perceptual term of LaMEGAN ("laplacian"), MIINet and EnlightenGAN ("pixel")."""

    space: Literal["laplacian", "pixel"] = "laplacian"
    vgg: Path | None = None
    """VGG-19 weights as safetensors with the keys `features.N.weight`; without them 1 - SSIM stands in."""
    vgg_sha256: str | None = None


Kind = Literal["segmentation", "fovea", "grading", "quality"]

TASK_NETWORKS: dict[Kind, tuple[str, ...]] = {
    "segmentation": ("csnet", "unet"),
    "fovea": ("heatmap",),
    "grading": ("resnet8", "tortuosity"),
    "quality": ("mcfnet",),
}
TASK_METHODS: dict[str, Kind] = {
    "segmenter": "segmentation",
    "fovea": "fovea",
    "grading": "grading",
    "quality": "quality",
}
"""Methods that train a task alone."""


class TaskNetwork(_Table):
    """All that shapes a task's network; it is kept beside the weights."""

    kind: Kind = "segmentation"
    """What is asked of a picture: where vessels, nerves or polyps are, where the fovea is, its level, its quality."""
    network: Literal["csnet", "unet", "heatmap", "resnet8", "tortuosity", "mcfnet"] = "csnet"
    """"tortuosity" is a linear classifier of measured fibres; nothing can be trained through it."""
    width: int = 8
    poolings: int = 3
    """Of a segmentation network."""
    channels: Literal[1, 3] = 3
    """Channels that the network takes; a colour picture is given to one channel as its green plane."""
    loss: Literal["mse_dice", "bce_dice"] = "mse_dice"
    """Of segmentation."""
    levels: int = 4
    """Of grading; they are numbered from 0."""
    branch: Literal["cnn", "densenet121"] = "cnn"
    """Of "mcfnet"; the paper's are DenseNet-121."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.network not in TASK_NETWORKS[self.kind]:
            raise ValueError(f"kind {self.kind!r} has network {' or '.join(map(repr, TASK_NETWORKS[self.kind]))}")
        return self


class Task(TaskNetwork):
    """A downstream task, trained alone or along with an enhancer (HQG-Net, eq. 12-18)."""

    mode: Literal["none", "frozen", "joint"] = "none"
    """"frozen": the enhancer learns from the task, not the reverse."""
    weights: Path | None = None
    """Safetensors that a run with a task's own method made."""
    segmenter: Path | None = None
    """Grading: safetensors of a segmenter that finds the fibres. Without it "tortuosity" takes pictures for masks."""
    enhancer_weight: float = 5.0
    """lambda_3: the enhancer's own loss is multiplied by it, the task's is added."""
    rate: float = 1e-4
    batch: int = 2
    dilate: int = 0
    """Pixels by which thin truth (centre lines) is widened."""
    pictures: list[Pictures] = []
    """Fovea and grading take the truth from each one's `table`. Quality has `data.low` and `data.high` instead."""
    masks: list[Pictures] = []
    """In the same order as `pictures`; what is above half is foreground."""
    columns: tuple[str, ...] = ()
    """Of the tables: row and column in pixels for a place, or first and last row, first and last column of a box of
    which it is the middle; the level for grading."""
    validation_pictures: list[Pictures] = []
    validation_masks: list[Pictures] = []
    degraded_fraction: float = 1.0
    """How many of the pictures are degraded; a task for good pictures is trained with 0."""

    @model_validator(mode="after")
    def _check_truth(self) -> Self:
        expected = {"fovea": (2, 4), "grading": (1,)}.get(self.kind, (0,))
        if len(self.columns) not in expected:
            raise ValueError(f"kind {self.kind!r} needs {' or '.join(map(str, expected))} columns")
        if self.mode != "none" and self.network == "tortuosity":
            raise ValueError('nothing can be trained through "tortuosity": take "resnet8"')
        if self.mode == "joint" and self.kind == "quality":
            raise ValueError('joint training would teach it to call everything good: take mode "frozen"')
        return self


class Schedule(_Table):
    """How long, how fast, how often to look."""

    pretrain: int = 0
    """HQG-Net: steps of the guide encoder's auto-encoder."""
    pretrain_batch: int = 4
    pretrain_rate: float = 1e-3
    warm_up: int = 0
    """Supervised steps on pairs before the unpaired stage."""
    steps: int
    """Unpaired steps."""
    constant: int
    """Unpaired steps at the full rate; then it falls linearly to zero."""
    lassim_ramp: int = 0
    """Warm-up steps over which the LaSSIM weight grows from 0; at once in full it holds a network to the identity."""
    finish: int = 0
    """Supervised steps on pairs after the unpaired stage, which may unlearn what only the pairs ask for."""
    batch: int = 1
    warm_up_batch: int = 4
    rate: float = 2e-4
    warm_up_rate: float = 1e-3
    finish_rate: float = 4e-4
    betas: tuple[float, float] = (0.5, 0.999)
    pool: int = 50
    """Generated pictures kept for the discriminators, per direction."""
    ema: float = 0.999
    """Decay of the weights' moving average, which is what is validated and kept."""
    minimum_lassim: float = -1.0
    """An average whose mean LaSSIM to its inputs is below this loses 1000 per unit in the choice of the best."""
    best_by: Literal["auto", "pairs", "poor"] = "auto"
    """What the best is chosen by: PSNR to the truth, or the score of `data.validation_poor`. "auto": by pairs where the
    truth is known (`validation_low` or a degradation), else by the poor ones."""
    keep: Literal["best", "last"] = "best"
    """The average that validated best in the last stage, or the one at the end: PSNR does not see every aim."""
    validate_every: int = 200
    checkpoint_seconds: float = 180.0
    seed: int = 1337


class TrainingRecipe(_Table):
    """One training run."""

    name: str
    summary: str
    licence_class: Literal["A", "B"] | None = None
    """Of the data: "A" permits to pass on what is learned from it; with one source of class "B", research alone. None:
    nobody has said, as of data of one's own."""
    method: Literal[
        "stillgan", "cyclegan", "lamegan", "miinet", "hqgnet", "enlightengan",
        "fields", "segmenter", "fovea", "grading", "quality",
    ] = "stillgan"  # fmt: skip
    data: Data
    network: Network = Field(default_factory=Network)
    weights: Weights = Field(default_factory=Weights)
    fields: FieldAims = Field(default_factory=FieldAims)
    perceptual: Perceptual = Field(default_factory=Perceptual)
    task: Task = Field(default_factory=Task)
    schedule: Schedule

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        own = (self.weights.illumination, self.weights.structure)
        if self.method in ("cyclegan", "lamegan", "miinet") and any(own):
            raise ValueError(f"{self.method} has neither illumination nor structure: set both weights to 0")
        if self.method in ("lamegan", "miinet", "enlightengan") and not self.weights.perceptual:
            raise ValueError(f"{self.method} needs weights.perceptual")
        if self.method == "enlightengan" and self.perceptual.space != "pixel":
            raise ValueError('enlightengan needs perceptual.space = "pixel": its patches have no third level')
        alone = TASK_METHODS.get(self.method)
        terms = frozenset() if alone else TERMS[self.method]
        for name in sorted(self.weights.model_fields_set & frozenset.union(*TERMS.values()) - terms):
            if getattr(self.weights, name):
                raise ValueError(f"weights.{name}: {self.method} has no such term")
        if alone and self.task.mode != "none":
            raise ValueError(f"a {self.method} trains alone: leave task.mode out")
        if alone and self.task.kind != alone:
            raise ValueError(f"method {self.method!r} needs task.kind {alone!r}")
        if alone or self.task.mode != "none":
            self._check_pictures()
        if self.schedule.best_by == "poor" and not self.data.validation_poor:
            raise ValueError("schedule.best_by: data.validation_poor is empty")
        return self

    def _check_pictures(self) -> None:
        if self.task.kind == "quality":
            if not self.data.low or (self.method == "quality" and not self.data.high):
                raise ValueError("quality needs pictures in data.low and data.high")
        elif not self.task.pictures:
            raise ValueError("task.pictures is empty")


def load_training_recipe(path: Path, overrides: dict[str, Any] | None = None) -> TrainingRecipe:
    """Read a training recipe.

    Args:
        path: The TOML file.
        overrides: Values that replace the file's, by dotted key (`schedule.steps`).

    Raises:
        RecipeError: The file is missing, no TOML, or has a wrong key or value; names file and key.
    """
    table = read_table(path, RecipeError)
    for dotted, value in (overrides or {}).items():
        *parents, leaf = dotted.split(".")
        node = table
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return checked(TrainingRecipe, table, path, RecipeError)
