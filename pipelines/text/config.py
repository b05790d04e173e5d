"""The kinds of text data and of stages on text alone that a recipe can hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from discrete.objective import Autoregressive, Blocks, Masked
from discrete.replaced import D3PM, Uniform
from discrete.text_model import TextTransformerConfig
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
        self.objective.check(self.length)
