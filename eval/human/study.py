"""What a study file says, and the hash under which it is registered before the first vote."""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from eval.human.criteria import CRITERIA, TAGGED, TAGS
from eval.human.errors import StudyError, named
from eval.samples import key_of

Mode = Literal["pairwise", "likert"]
NAME = re.compile(r"[\w][\w .+-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where pictures come from: a generate stage of a run, or a folder of pictures with captions.

    split: of a run, its held-out one by default. figures: the first part of the names of this model's figures in
    report.json; of a run, the stage that drew.
    """

    run: str = ""
    stage: str = ""
    folder: str = ""
    split: str = ""
    figures: str = ""

    def __post_init__(self) -> None:
        """Refuse what names no pictures, or two places."""
        if bool(self.folder) == bool(self.run):
            raise ValueError('give either run = "runs/..." with stage = "...", or folder = "..."')
        if self.folder and (self.stage or self.split):
            raise ValueError("stage and split belong to a run, not to a folder")


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Which prompts: those of a text file (one a line), else those of the first model; the first `count` of them.

    extra: what to do with pictures of further prompts: refuse, or leave them out.
    """

    count: int = 50
    file: str = ""
    extra: Literal["refuse", "leave"] = "refuse"

    def __post_init__(self) -> None:
        """Refuse a study without prompts."""
        if self.count < 1:
            raise ValueError(f"count is {self.count}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Exclude:
    """Which raters do not count, fixed before the first vote; 0 switches a rule off.

    min_gold: least share of controls answered as expected (one failed control alone excludes
    nobody); min_median_ms: least median time of an answer; min_consistency: least share of repeated pairs answered
    alike; max_side: largest share of one side.
    """

    min_gold: float = 0.8
    min_median_ms: float = 2000
    min_consistency: float = 0.0
    max_side: float = 0.0

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        for name in ("min_gold", "min_consistency", "max_side"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a share from 0 to 1")
        if not 0 <= self.min_median_ms < 600_000:
            raise ValueError(f"min_median_ms is {self.min_median_ms}, expected milliseconds from 0 to 600000")


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as its file describes it.

    raters: who see every pair; with an even number every pair stands as often on either side. block: pairs for one
    rater, without controls. pairs_per_prompt: pairs of models that a prompt is shown with; 0 is all of up to three
    models, else as many as there are models. gold, repeats: shares of control and repeated pairs. both_bad: offer
    "both bad" beside the tie. tags: defects that can be named. truth: real pictures for the prompts, from which
    controls of relevance are made. encoder: of all pictures. anchor: the model at 0 of the scale of strengths.
    resample: what intervals draw again. base_url: where the folder `bundle` will be served.
    """

    name: str
    model: dict[str, Source]
    title: str = "Which picture is better?"
    mode: Mode = "pairwise"
    criteria: tuple[str, ...] = tuple(CRITERIA)
    prompts: Prompts = field(default_factory=Prompts)
    seed: int = 0
    raters: int = 4
    block: int = 60
    pairs_per_prompt: int = 0
    gold: float = 0.1
    repeats: float = 0.08
    both_bad: bool = True
    tags: tuple[str, ...] = TAGS
    truth: Source | None = None
    encoder: Literal["png", "webp"] = "png"
    anchor: str = ""
    resample: Literal["prompts", "prompts and raters"] = "prompts"
    base_url: str = ""
    exclude: Exclude = field(default_factory=Exclude)

    def __post_init__(self) -> None:
        """Refuse a study that could not be shown or evaluated."""
        self._check_names()
        least = {"raters": 1, "block": 4, "pairs_per_prompt": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {low}")
        for name in ("gold", "repeats"):
            if not 0 <= getattr(self, name) <= 1 / 3:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a share from 0 to 1/3")
        if self.base_url and not re.fullmatch(r"https?://\S+", self.base_url):
            raise ValueError(f"base_url is {self.base_url!r}, expected http:// or https://")

    def _check_names(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name is {self.name!r}, expected up to 64 letters, digits, spaces, . + - and _")
        least = 2 if self.mode == "pairwise" else 1
        if len(self.model) < least:
            raise ValueError(f"a {self.mode} study needs at least {least} models: add [model.NAME] tables")
        for name in self.model:
            if not NAME.fullmatch(name) or name.lower().startswith("gold"):
                raise ValueError(f"model {name!r}: use letters, digits, spaces, . + - and _, and not gold")
        if len({name.strip().lower() for name in self.model}) < len(self.model):
            raise ValueError(f"models {', '.join(self.model)}: two names differ in case alone")
        unknown = [name for name in self.criteria if name not in CRITERIA]
        if unknown or not self.criteria or len(set(self.criteria)) < len(self.criteria):
            raise ValueError(f"criteria are {list(self.criteria)}, expected some of {', '.join(CRITERIA)}, each once")
        if self.anchor and self.anchor not in self.model:
            raise ValueError(f"anchor is {self.anchor!r}, expected one of the models {', '.join(self.model)}")
        if TAGGED in self.tags or len(set(self.tags)) < len(self.tags) or any(not NAME.fullmatch(t) for t in self.tags):
            raise ValueError(f"tags are {list(self.tags)}, expected different words")

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models."""
        return tuple(self.model)

    @property
    def choices(self) -> tuple[str, ...]:
        """What a rater can answer."""
        if self.mode == "likert":
            return ("1", "2", "3", "4", "5")
        return ("left", "right", "tie", *(("both_bad",) if self.both_bad else ()))


def registered(study: Study, prompts: Sequence[str], pictures: dict[str, str]) -> dict[str, Any]:
    """What is fixed before the first vote: the study, its prompts, and a hash of every model's pictures."""
    return {"schema": 1, "study": dataclasses.asdict(study), "prompts": list(prompts), "pictures": pictures}


def study_hash(content: dict[str, Any]) -> str:
    """The identity of a study: 16 hexadecimal digits of the sha256 of what was registered."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def prompt_id(prompt: str) -> str:
    """The identity of a prompt in tables: 12 hexadecimal digits."""
    return key_of(prompt)


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse a study without prompts, and prompts that come twice: votes are counted by prompt."""
    if not prompts:
        raise StudyError("the study has no prompts: draw all models on the same prompts first")
    twice = [prompt for prompt, count in Counter(prompts).items() if count > 1]
    if twice:
        raise StudyError(f"{len(twice)} prompts come more than once ({named(map(repr, twice))}): give each once")
    if empty := [i for i, prompt in enumerate(prompts) if not prompt.strip()]:
        raise StudyError(f"prompts {named(empty)} have no words: take them off the list")
