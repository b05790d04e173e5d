"""The kinds of text data and of stages on text alone that a recipe can hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from pydantic import Field

from discrete.likelihood import LONGEST
from discrete.objective import Autoregressive, Blocks, Masked
from discrete.replaced import D3PM, Uniform
from discrete.text_model import TextTransformerConfig
from pipelines.sampling_options import MASKED_SAMPLERS, Variant, check_rows, check_samplers
from pipelines.stage import Stage
from pipelines.task import Training
from pipelines.text.detokenise import Detokenise
from tokenizer.plain import Unit

AnyObjective = Autoregressive | Masked | Blocks | Uniform | D3PM


@dataclass(frozen=True, kw_only=True)
class TextData:
    """Plain text files; `--data DIR` says where they are."""

    kind: Literal["text"] = "text"
    path: str | None = None
    train: str
    test: str
    valid: str | None = None  # none: the last valid_share of the training text, which is then not trained on
    valid_share: float = 0.05
    separator: str = ""  # what stands between two documents, one token; they are then read each on its own
    detokenise: Detokenise = "none"  # how spaces that a set put around its words are taken out before all else
    credit: str = ""  # the licence line that the report prints

    def __post_init__(self) -> None:
        """Refuse a share that leaves nothing."""
        if not 0 < self.valid_share < 1:
            raise ValueError(f"valid_share is {self.valid_share}, expected a share between 0 and 1, such as 0.05")


@dataclass(frozen=True, kw_only=True)
class TextTokensStage(Stage):
    """A tokenizer learned from the training text, and all texts as tokens."""

    kind: Literal["text_tokens"] = "text_tokens"
    unit: Unit = "characters"
    vocab_size: int | None = None  # of byte pairs


@dataclass(frozen=True, kw_only=True)
class TextModelStage(Stage):
    """A transformer over windows of text: masked, autoregressive, or by blocks, as its objective says."""

    kind: Literal["text_model"] = "text_model"
    objective: Annotated[AnyObjective, Field(discriminator="kind")] = field(default_factory=Masked)
    model: TextTransformerConfig = field(default_factory=TextTransformerConfig)
    length: int = 256  # tokens of a window
    training: Training

    def __post_init__(self) -> None:
        """Refuse a length that the objective cannot learn."""
        if self.length < 2:
            raise ValueError(f"length is {self.length}, expected at least 2 tokens, such as 256")
        self.objective.check(self.length, timed=self.model.time)


TextVariant = Literal[Variant, "blocks"]  # masked_ancestral in blocks of a quarter of the text
BLOCKS = 4  # of a text, in the variant that goes by blocks


@dataclass(frozen=True, kw_only=True)
class TextSweepStage(Stage):
    """Texts of every model with every sampler at several numbers of steps, judged by an autoregressive scorer."""

    kind: Literal["text_sweep"] = "text_sweep"
    judge: str  # the autoregressive stage in `needs` whose perplexity and features judge, and which is not swept
    count: int = 128  # texts behind every figure
    length: int = 256  # tokens of a text
    samplers: tuple[str, ...] = MASKED_SAMPLERS  # of masked models
    variants: tuple[TextVariant, ...] = get_args(TextVariant)  # of those samplers
    steps: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    bounds: tuple[float, ...] = (100.0, 30.0, 10.0, 3.0, 1.0)  # nats, of entropy_bound, in place of steps
    temperatures: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9)  # besides 1, each at half as many steps as tokens
    top_p: tuple[float, ...] = (0.8, 0.95)  # at the same number of steps
    top_k: tuple[int, ...] = (5, 20)
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse samplers that there are not, and numbers that measure nothing."""
        check_samplers(self.samplers, MASKED_SAMPLERS)
        check_rows(self.samplers, self.variants, self.bounds)
        if not self.steps or min(self.steps) < 2 or self.length < 2:
            raise ValueError(f"steps {self.steps} and length {self.length}: expected at least 2 steps and 2 tokens")
        if self.count < 20:
            raise ValueError(f"count is {self.count}, expected at least 20 texts: fewer judge nothing")
        if self.temperatures and not min(self.temperatures) > 0:
            raise ValueError(f"temperatures are {self.temperatures}, expected numbers above 0")
        if "blocks" in self.variants and self.length % BLOCKS:
            raise ValueError(
                f"length is {self.length}, which {BLOCKS} blocks do not divide: give a multiple, or leave 'blocks' out "
                "of variants"
            )
        if not all(0 < p <= 1 for p in self.top_p) or not all(k > 0 for k in self.top_k):
            raise ValueError(f"top_p {self.top_p} and top_k {self.top_k}: expected shares up to 1 and whole numbers")


@dataclass(frozen=True, kw_only=True)
class OtherText:
    """A text that no model was trained on, for a zero-shot cost: a file of the data folder, and how it is read."""

    file: str
    detokenise: Detokenise = "none"


@dataclass(frozen=True, kw_only=True)
class TextEvalStage(Stage):
    """The report: what the held-out text costs under every text model in `needs`, and the sweeps in `needs`."""

    kind: Literal["text_eval"] = "text_eval"
    draws: int = 16  # masks of each window and repeat, one from each stratum of their counts
    repeats: int = 2  # of the draws, from which the bound's own error is known
    windows: int | None = None  # of each text, its first ones; all of it by default
    other: tuple[OtherText, ...] = ()
    short: int = 8  # tokens of the pieces whose likelihood over all orders is exact: 2^short passes each
    short_count: int = 64  # of them

    def __post_init__(self) -> None:
        """Refuse numbers that measure nothing."""
        if self.draws < 1 or self.repeats < 2:
            raise ValueError(f"draws {self.draws} and repeats {self.repeats}: expected at least 1 and 2")
        if self.windows is not None and self.windows < 2:
            raise ValueError(f"windows is {self.windows}, expected at least 2; leave it out to count the whole text")
        if not 1 <= self.short <= LONGEST or self.short_count < 2:
            raise ValueError(
                f"short is {self.short} and short_count {self.short_count}: expected 1 to {LONGEST} tokens, whose "
                "maskings are all asked about, and at least 2 pieces"
            )
