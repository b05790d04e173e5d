"""The figures of text: captions of pictures, texts without any, and the bound against the exact entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.blocks import Column, Section, Table, Texts
from eval.definitions import define
from eval.figure import Figure, missing
from eval.interval import share_interval, wilson
from eval.scene import score_caption
from eval.text import Corpus, text_bound, variety
from pipelines.artefact import read_json
from pipelines.data.grammar import for_size
from pipelines.judging import scored
from pipelines.masked_sampler import MaskedSampler
from pipelines.measures import Evaluation
from pipelines.sweep_report import kept
from pipelines.text_bound import caption_bound


def words(e: Evaluation) -> None:
    """Captions, texts without pictures, and the bound on held-out captions against the exact entropy."""
    blocks: list[Texts | Table] = []
    masked = [made for made in e.generated() if (made.folder / "captions.json").exists()]
    for made in masked[:1]:  # figures of captions and texts are those of the first masked model
        captions, texts = read_json(made.folder / "captions.json"), read_json(made.folder / "texts.json")
        _caption_figures(e, captions, made.stage)
        _bound_figures(e, made.model)
        for which, bound in e.run.manifest(made.model).get("joint_bound", {}).items():
            source = f"{made.model}: pairs, text and image revealed by {which} schedules"
            e.figures[f"{made.model}.joint_bound[{which}]"] = kept(bound, source)
        blocks.append(
            Texts(
                "Captions of held-out pictures",
                [(row["truth"], row["caption"]) for row in captions[:40]],
                "The true caption, then the model's.",
            )
        )
        corpus = Corpus(caption.split() for caption in e.run.open("train").captions())
        found = variety([text.split() for text in texts], corpus)
        source = f"{made.stage}: {len(texts)} texts without a picture, a count over all of them"
        for name, value in vars(found).items():
            e.figures[f"text.{name}"] = Figure(value, len(texts), source=source)
        e.note("text.copied", wilson(found.copied * len(texts), len(texts)), source)
        empty = {"caption": [row["caption"] for row in captions], "text": texts}
        for which, written in empty.items():
            lost = sum(not words.strip() for words in written)
            e.figures[f"{which}.failures[empty]"] = Figure(lost, len(written), source=f"{made.stage}: a count")
        shown = [[f"{which}s", len(written), e.figures[f"{which}.failures[empty]"]] for which, written in empty.items()]
        blocks.append(Table("Texts without a word", ["texts", "n", Column("empty", "plain", "lower")], shown))
        rows = [[define(f"text.{name}").label, e.figures[f"text.{name}"]] for name in vars(found)]
        blocks.append(Texts("Texts without a picture", texts[:60]))
        blocks.append(Table(f"Variety of {len(texts)} texts", ["measure", "value"], rows))
    e.sections.append(Section("Texts", blocks))


def _caption_figures(e: Evaluation, captions: Sequence[Mapping[str, Any]], generate: str) -> None:
    if not e.run.recipe.grammatical:
        return
    grammar = for_size(e.run.recipe.size)
    labels = [row["label"] for row in captions]
    scores = [score_caption(grammar.parse(row["caption"]), row["label"]) for row in captions]
    for attribute, interval in scored(scores, labels).items():
        e.note(
            f"caption.scene.{attribute}",
            interval,
            f"{generate}, {len(captions)} {e.where} pictures, parsed by the grammar",
        )
    parsed = [grammar.parse(row["caption"]) is not None for row in captions]
    e.note("caption.grammatical", share_interval(parsed), f"{generate}: captions that the grammar parses")


def _bound_figures(e: Evaluation, model: str) -> None:
    """The text bound on the held-out captions, and the grammar's own cost of the same captions."""
    sampler = MaskedSampler.load(e.run, model)
    captions = e.real.captions
    encoded = sampler.bpe.encode(captions)
    bound = caption_bound(sampler.network, sampler.layout, encoded.tokens, sampler.bpe.pad_id, seed=e.seed)
    read = sampler.bpe.decode(encoded.tokens)  # what was read: a long caption is cut, and only that is scored
    figures = text_bound(bound.nats.numpy(), bound.tokens.numpy(), read, seed=e.seed)
    source = f"{model}, upper bound on {len(captions)} {e.where} captions without their pictures"
    e.note("text.nats_per_token", figures.nats_per_token, source)
    e.note("text.bits_per_char", figures.bits_per_character, source)
    e.note("text.bits_per_byte", figures.bits_per_byte, source)
    cut = int(encoded.truncated.sum())
    if cut or not e.run.recipe.grammatical:
        people = "the captions of this data come from people, not from a known grammar"
        long = f"{cut} captions are longer than the {sampler.bpe.length} tokens that are read: raise bpe.length"
        e.figures["text.exact_nats_per_token"] = missing(long if e.run.recipe.grammatical else people)
        return
    grammar = for_size(e.run.recipe.size)
    exact = np.array([-grammar.log_probability(caption) for caption in captions])
    cost = text_bound(exact, bound.tokens.numpy(), captions, seed=e.seed)
    e.note(
        "text.exact_nats_per_token",
        cost.nats_per_token,
        f"-log p of the same captions under the grammar; its entropy is {grammar.entropy():.3f} nats a caption",
    )
    excess = text_bound(bound.nats.numpy() - exact, bound.tokens.numpy(), captions, seed=e.seed)
    e.note("text.excess_nats_per_token", excess.nats_per_token, "the bound less the exact cost, caption by caption")
