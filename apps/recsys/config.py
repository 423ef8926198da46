"""The settings of a data set and of one training."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from apps.common import options
from apps.common.config import PresetConfig, RunConfig, Value, read_preset
from apps.common.ranges import at_least, in_unit_interval, positive
from apps.recsys import data
from apps.recsys.augmentation import LLMRecSettings
from apps.recsys.forgetting.request import Forgotten
from apps.recsys.models.shared_rows import SHARING
from apps.recsys.reading import BadRows, Columns
from apps.recsys.splits import Dataset
from sparsekit.method import require_sparsity
from sparsekit.spelling import choice

PRESETS = Path(__file__).parent / "presets"
MODELS = ("lightgcn", "llmrec", "mf", "multvae", "neumf")


@dataclass(frozen=True)
class LogFile(PresetConfig):
    """A file of interactions and how it is read. Every field is a flag.

    Args:
        dataset: ml100k, gowalla, or a file: .csv, .tsv, .inter (also .gz), .parquet.
        catalogue: a file of the items, a row each: titles to show and to read, columns
            to filter by. .csv, .tsv (also .gz), .parquet; ids as in `columns`.
        rating: the least that counts as liked; default: 4 for ml100k, else all rows.
        columns: names in the file: user, item, rating, timestamp; unit of times.
        where: column=value, rows that count, as event=buy or event=buy,cart.
        separator: of a text file; default: by its suffix.
        encoding: of text files.
        bad_rows: raise, or drop and count them.
        without: a forgotten.json that `forget` wrote: whom and what to leave out, after
            the split, so that all others stay in their parts.
    """

    dataset: str = "ml100k"
    catalogue: Path | None = None
    rating: float | None = None
    columns: dict[str, str] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    separator: str | None = None
    encoding: str = "utf-8"
    bad_rows: BadRows = "raise"
    without: Path | None = None

    @property
    def reading(self) -> dict[str, Any]:
        """How files are read: arguments of `reading.read` and `data.load`."""
        unknown = sorted(set(self.columns) - set(Columns.__dataclass_fields__))
        if unknown:
            refused, known = f"no column {unknown[0]!r}", Columns.__dataclass_fields__
            raise ValueError(choice(f"columns: {refused}", unknown[0], known))
        names = ("separator", "encoding", "bad_rows", "where", "catalogue")
        chosen = {name: getattr(self, name) for name in names}
        return {"columns": Columns(**self.columns), **chosen}


@dataclass(frozen=True)
class Source(LogFile):
    """Interactions and their split. Every field is a flag and a key of a preset.

    Args:
        test: a file with the test part; then `dataset` is the training part.
        split: random (10 % of each user are test, 10 % validation), leave_one_out or
            global_time.
        split_seed: of a random split, of the order of equal times in leave_one_out,
            and of the validation part of gowalla.
        core: interactions that each user and item must have; 1 for no such limit.
    """

    test: str | None = None
    split: Literal["random", "leave_one_out", "global_time"] = "random"
    split_seed: int = 0
    core: int = 1

    def load(self) -> Dataset:
        """The data set in its three parts."""
        if self.core < 1:
            raise ValueError(f"core must be at least 1, got {self.core}")
        changed = (self.rating, self.core, self.split, self.test)
        if self.dataset == "gowalla" and changed != (None, 1, "random", None):
            raise ValueError(
                "gowalla has its own split and no ratings: leave rating, core, split "
                "and test as they are"
            )
        rating = self.rating
        if rating is None and self.dataset == "ml100k":
            rating = data.LIKED.rating
        whole = data.load(
            self.dataset,
            data.Preparation(rating=rating, core=self.core),
            split=self.split,
            seed=self.split_seed,
            test=self.test,
            **self.reading,
        )
        if self.without is None:
            return whole
        return Forgotten.load(self.without).remove(whole)

    def load_whole(self) -> Dataset:
        """All of it as the training part, unless files of its own split it.

        For a model whose settings are given, of data that are too few to be split.
        """
        if self.test is not None or self.dataset == "gowalla":
            return self.load()
        return replace(self, split="none").load()


@dataclass(frozen=True)
class Config(Source, RunConfig):
    """One training.

    Args:
        train_on: train: the epoch is chosen on the validation part. all: the validation
            part is trained on too, so nothing is chosen: the last epoch is tested.
        model: lightgcn, llmrec, mf, multvae or neumf.
        augmentation: of llmrec: a file with triplets and features, made by `augment`.
        llmrec: how the augmentation is used.
        dim: of the vectors.
        sharing: none, or how the rows of lightgcn's and mf's table share numbers:
            hashed, product or sum (quotient and remainder).
        stored_rows: rows that are stored where they share, of users and items together.
        layers: of lightgcn's and llmrec's graph convolution, of neumf's tower.
        hidden: units of multvae's two hidden layers.
        dropout: of the input of multvae (default 0.5) and neumf (default 0).
        kl: weight of multvae's prior, reached after the share `anneal` of the training.
        anneal: see kl.
        l2: weight of the squared vectors of a batch; multvae has none.
        draw: interactions: each once an epoch. users: as many draws of a user and of
            one of the user's items, so that users who have few count more.
        negatives: drawn for each positive.
        negative_power: of an item's number of users in its probability as a negative;
            0 uniform, 1 popularity.
        method: "dense", a name that `sparsekit methods` lists, or a file my_method.py.
        sparsity: fraction of zeros over all masked weights, in [0, 1); unused by dense.
        options: other fields of the method; times in steps, "2 epochs" or "75%".
        mask_seed: of the method's random choices; default: `seed`, which draws the
            initial vectors, the order of the data and the negatives as well.
        backend: masked (dense weights with zeros), or values: tables store alive
            weights only, on the CPU.
        sparse: names of the parameters that are masked; default: what the model says.
        moments: optimizer state of regrown weights: zero, or mean of the table.
        epochs: passes over the training interactions, at most.
        every: epochs from one validation to the next.
        patience: validations without a better NDCG@20 before the training ends; 0 for
            never.
        batch: interactions (users for autoencoders) a step; the incomplete last batch
            of an epoch is dropped.
        lr: peak learning rate of Adam.
        schedule: constant, or cosine to lr / 100.
        device: cpu or cuda.
    """

    train_on: Literal["train", "all"] = "train"
    model: Literal["lightgcn", "llmrec", "mf", "multvae", "neumf"] = "lightgcn"
    augmentation: Path | None = None
    llmrec: LLMRecSettings = field(default_factory=LLMRecSettings)
    dim: int = 64
    sharing: Literal["none", "hashed", "product", "sum"] = "none"
    stored_rows: int = 0
    layers: int = 3
    hidden: int = 600
    dropout: float | None = None
    kl: float = 0.2
    anneal: float = 0.5
    l2: float = 1e-4
    draw: Literal["interactions", "users"] = "interactions"
    negatives: int = 1
    negative_power: float = 0.0
    method: str = "dense"
    sparsity: float = 0.9
    options: dict[str, Value] = field(default_factory=dict)
    mask_seed: int | None = None
    backend: Literal["masked", "values"] = "masked"
    sparse: tuple[str, ...] = ()
    moments: Literal["zero", "mean"] = "zero"
    epochs: int = 200
    every: int = 5
    patience: int = 10
    batch: int = 2048
    lr: float = 0.001
    schedule: Literal["constant", "cosine"] = "constant"
    device: str = "cpu"

    def __post_init__(self) -> None:
        check(self)


def preset(name: str, profile: str = "laptop", **changes: Any) -> Config:
    """A preset's settings in a profile, with some fields changed.

    Raises FileNotFoundError for an unknown preset, TypeError for an unknown field.

    >>> config = preset("lightgcn-ml100k", "smoke", seed=3)
    >>> config.model, config.epochs, config.seed
    ('lightgcn', 6, 3)
    """
    return read_preset(Config, PRESETS, name, profile, **changes)


def check(config: Config) -> None:
    """ValueError for a setting out of range, before any work."""
    if config.model not in MODELS:
        refused = f"model {config.model!r} is unknown"
        raise ValueError(choice(refused, config.model, MODELS))
    if config.model == "llmrec" and config.augmentation is None:
        raise ValueError("model llmrec needs augmentation, the file `augment` made")
    if config.sharing != "none":
        if config.sharing not in SHARING:
            kinds = ", ".join(SHARING)
            raise ValueError(f"sharing must be none, {kinds}, got {config.sharing!r}")
        if config.model not in ("lightgcn", "mf"):
            raise ValueError(f"sharing needs lightgcn or mf, not {config.model}")
        if config.backend == "values":
            raise ValueError("backend values stores a row for each: leave sharing none")
    elif config.stored_rows:
        raise ValueError("stored_rows needs sharing: hashed, product or sum")
    at_least(0 if config.sharing == "none" else 1, config, "stored_rows")
    at_least(0, config, "layers", "patience", "split_seed", "mask_seed")
    at_least(1, config, "dim", "hidden", "negatives", "epochs", "every", "batch")
    require_sparsity(config.sparsity)
    in_unit_interval(config, "dropout", "anneal")
    at_least(0, config, "l2", "kl", "negative_power")
    positive(config, "lr")
    options.require_backend(config.backend, config.method)
    if config.backend == "values" and config.device != "cpu":
        raise ValueError(f"backend values works on the cpu, not {config.device}")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", config.device):
        raise ValueError(f"device must be cpu, cuda or cuda:0, got {config.device!r}")
    if config.method == "dense" and config.sparse:
        raise ValueError("sparse names masked parameters; method dense masks none")
    options.build(config.method, config.sparsity, config.options, 100, 1000)
