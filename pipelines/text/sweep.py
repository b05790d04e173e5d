"""Generated texts against network evaluations, for every model and sampler, and against temperature."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from discrete.objective import Autoregressive, Blocks, Masked
from discrete.replaced import D3PM, Uniform
from eval.generative import GenerativeText, comparable, generative_text
from eval.interval import Interval
from eval.mauve import mauve
from eval.text import Corpus as WordCorpus
from pipelines.errors import DataError
from pipelines.provenance import machine
from pipelines.runs import Run
from pipelines.sampling import chunks, generators
from pipelines.sampling_options import MaskedOptions, Settings, variant_of
from pipelines.sweep_rows import Setting, measure_rows, plain_interval, timed
from pipelines.text.config import BLOCKS, TextModelStage, TextSweepStage, TextVariant
from pipelines.text.corpus import Corpus
from pipelines.text.sampler import TextSampler
from pipelines.text.scorer import Scorer
from pipelines.text.settings import usual_settings

BATCH = 64
REAL = "real"
SHOWN = 3  # texts of each row that the report shows


def settings_of_sweep(run: Run, stage: TextSweepStage) -> Iterator[Setting]:
    """Yield every setting of the sweep: the real text, then all models with all their samplers."""
    plain = Settings(sampler=REAL, steps=1, guidance=1.0)
    yield Setting(REAL, REAL, "held-out text", plain)
    yield Setting(REAL, REAL, "training text", plain)
    for name in stage.needs:
        if isinstance(model := run.recipe.stage[name], TextModelStage) and name != stage.judge:
            yield from _rows(name, model, stage)


def _rows(name: str, model: TextModelStage, stage: TextSweepStage) -> Iterator[Setting]:
    """Rows of one model: its samplers over numbers of steps, and its usual one over temperatures."""
    plain = usual_settings(model.objective, stage.length)
    curves = list(_curves(model, stage, plain))
    for curve, settings in curves:
        yield Setting("steps", name, f"{name}: {curve}", settings)
    if isinstance(model.objective, Uniform | D3PM):  # their steps go by the model's own law
        return
    for temperature in (*stage.temperatures, 1.0):
        yield Setting("temperature", name, name, dataclasses.replace(plain, temperature=temperature))
    for option in ("top_p", "top_k"):
        for value in getattr(stage, option):
            masked = MaskedOptions(**{option: value})
            yield Setting("temperature", name, f"{name}: {option}", dataclasses.replace(plain, masked=masked))


def _curves(model: TextModelStage, stage: TextSweepStage, plain: Settings) -> Iterator[tuple[str, Settings]]:
    """Curves and their settings over numbers of steps; the model's usual sampler comes first."""
    match model.objective:
        case Autoregressive():
            yield "one by one", plain
        case Masked():
            for sampler in sorted(stage.samplers, key=lambda name: name != plain.sampler):
                if sampler == "entropy_bound":
                    options = [MaskedOptions(bound=bound) for bound in stage.bounds]
                    yield from ((sampler, dataclasses.replace(plain, sampler=sampler, masked=o)) for o in options)
                    continue
                for steps in stage.steps:
                    yield sampler, dataclasses.replace(plain, sampler=sampler, steps=steps)
            for variant in stage.variants:
                for steps in (steps for steps in stage.steps if variant != "blocks" or steps % BLOCKS == 0):
                    yield variant, _variant(variant, dataclasses.replace(plain, steps=steps), stage.length)
        case Blocks(size=size):
            for steps in sorted({1, 2, 4, 8, 16, size, 4 * size}):
                yield f"blocks of {size}", dataclasses.replace(plain, steps=steps)
        case Uniform():
            for steps in stage.steps:
                yield "uniform ancestral", dataclasses.replace(plain, steps=steps)
        case D3PM(steps=steps):
            yield "all steps", dataclasses.replace(plain, steps=steps)
        case _:
            raise AssertionError(model.objective)


def _variant(variant: TextVariant, plain: Settings, length: int) -> Settings:
    """Return settings of a variant of the masked samplers, at as many evaluations as `plain` has."""
    if variant != "blocks":
        return variant_of(plain, variant)
    options = MaskedOptions(block=length // BLOCKS)
    return dataclasses.replace(plain, steps=plain.steps // BLOCKS, masked=options)


@dataclass
class TextJudged:
    """What rows are measured against."""

    run: Run
    stage: TextSweepStage
    corpus: Corpus
    scorer: Scorer
    samplers: dict[str, TextSampler] = field(default_factory=dict)

    @cached_property
    def words(self) -> WordCorpus:
        """The words of the training text."""
        tokenizer = self.corpus.tokenizer
        text = tokenizer.decode(self.corpus.splits["train"].ids.numpy())
        documents = text.split(tokenizer.separator) if tokenizer.separator else [text]
        return WordCorpus([document.split() for document in documents])

    @cached_property
    def reference(self) -> tuple[GenerativeText, NDArray[np.float32]]:
        """Figures and features of one half of the held-out text, with which all rows are compared."""
        return self.judge(self.real("test", 0))

    def real(self, split: str, half: int) -> list[str]:
        """Windows of a real text, spread over all of it: every second one, the other half being disjoint.

        Where the text has documents, they are the beginnings of those. Raises DataError where there are too few.
        """
        ids, length, count = self.corpus.splits[split].ids, self.stage.length, 2 * self.stage.count
        if self.corpus.tokenizer.end_id is not None:
            return self._documents(split)[half::2]
        if len(ids) < count * length:
            raise DataError(
                f"The {split} text has {len(ids)} tokens, but two sets of {self.stage.count} windows of {length} need "
                f"{count * length}: give a smaller count or length."
            )
        starts = np.linspace(0, len(ids) - length, count).astype(int)[half::2]
        return [self.corpus.tokenizer.decode(ids[start : start + length].numpy()) for start in starts]

    def _documents(self, split: str) -> list[str]:
        """The beginnings of two sets of documents, spread over a text."""
        tokenizer, ids, count = self.corpus.tokenizer, self.corpus.splits[split].ids.numpy(), 2 * self.stage.count
        ends = np.flatnonzero(ids == tokenizer.end_id)
        starts, stops = np.concatenate([[0], ends + 1]), np.concatenate([ends, [len(ids)]])
        filled = np.flatnonzero(stops > starts)
        if len(filled) < count:
            raise DataError(
                f"The {split} text has {len(filled)} documents, but two sets of {self.stage.count} are needed: give a "
                "smaller count."
            )
        chosen = filled[np.linspace(0, len(filled) - 1, count).astype(int)]
        stops = np.minimum(stops + 1, starts + self.stage.length)  # the end as well, where there is room
        return [tokenizer.decode(ids[starts[i] : stops[i]]) for i in chosen]

    def judge(self, texts: list[str]) -> tuple[GenerativeText, NDArray[np.float32]]:
        """Figures and features of texts; the separator that ends one is judged, but is no word."""
        scores, states = self.scorer.read(texts)
        words = [text.removesuffix(self.corpus.tokenizer.separator).split() for text in texts]
        return generative_text(scores, words, self.words, seed=self.stage.seed), states

    def measure(self, setting: Setting) -> dict[str, Any]:
        """Sample as one setting says, and judge it."""
        evaluations, passes, seconds, timed_text = 0.0, 0.0, None, list[tuple[str, float]]()
        if setting.group == REAL:
            texts = self.real("test" if setting.curve.startswith("held") else "train", 1)
        else:
            texts, evaluations, passes, seconds, timed_text = self._write(setting)
        (found, states), (real, real_states) = self.judge(texts), self.reference
        overlap = mauve(states, real_states, embedder=self.scorer.name)
        verdict = comparable(found, real)
        figures = {
            "genppl": found.perplexity,
            "nats_per_character": found.nats_per_character,
            "entropy": found.entropy,
            "token_entropy": found.token_entropy,
            "self_bleu_4": found.self_bleu_4,
            "mauve": overlap.mauve.interval(),
            "mauve_star": overlap.smoothed.interval(),
            "frontier_integral": overlap.frontier_integral.interval(),
        }
        row = {"group": setting.group, "model": setting.model, "curve": setting.curve}
        row |= {"evaluations": evaluations, "passes": passes, **dataclasses.asdict(setting.settings)}
        row |= {"scorer": found.label(), "mauve": overlap.label(), "comparable": bool(verdict), "why": verdict.reason}
        if seconds is not None:
            figures["seconds"], row["machine"] = seconds, machine()
        kept = {name: plain_interval(value) for name, value in figures.items()}
        return {**row, "figures": kept, "variety": vars(found.variety), "texts": texts[:SHOWN], "timed": timed_text}

    def _write(self, setting: Setting) -> tuple[list[str], float, float, Interval, list[tuple[str, float]]]:
        """Texts, with evaluations, whole passes and seconds for each, and when the first one's pieces were revealed.

        A model's first batch is written twice.
        """
        length, texts = self.stage.length, list[str]()
        parts = list(chunks(generators([""] * self.stage.count, self.stage.seed), BATCH))
        if setting.model not in self.samplers:
            sampler = self.samplers[setting.model] = TextSampler.load(self.run, setting.model)
            sampler.write(len(parts[0]), generators([""] * len(parts[0]), 0), setting.settings, length=length)
        sampler, taken, first = self.samplers[setting.model], list[float](), list[tuple[str, float]]()
        evaluations = passes = 0.0
        for part in parts:
            begun = time.perf_counter()
            written = sampler.write(len(part), part, setting.settings, length=length)
            taken.append(time.perf_counter() - begun)
            first = first or sampler.timed(written)
            texts += sampler.texts(written)
            evaluations += written.evaluations * len(part) / self.stage.count
            passes += written.passes * len(part) / self.stage.count
        return texts, round(evaluations, 2), round(passes, 2), timed(taken, [len(part) for part in parts]), first


def text_sweep(run: Run, name: str, stage: TextSweepStage) -> dict[str, Any]:
    """Measure every setting of the sweep."""
    judged = TextJudged(run, stage, Corpus.load(run, name), Scorer.load(run, stage.judge))
    wanted = list(settings_of_sweep(run, stage))
    rows = measure_rows(run.stage_folder(name), name, wanted, judged.measure)
    return {"rows": rows, "count": stage.count, "scorer": judged.scorer.name}
