"""The figures of autoregressive models of pictures: what held-out codes and captions cost, exactly."""

from __future__ import annotations

import math

from eval.interval import mean_interval
from eval.text import text_bound
from pipelines.ar_sampler import ArSampler
from pipelines.cache import open_cache
from pipelines.measures import Evaluation
from pipelines.prior_cost import pair_cost
from pipelines.stage_config import ArStage


def prior_costs(e: Evaluation) -> None:
    """Note the costs of held-out pairs under each autoregressive model that drew pictures."""
    models = dict.fromkeys(made.model for made in e.generated())
    for model in models:
        if isinstance(e.run.recipe.stage[model], ArStage):
            _note_costs(e, model)


def _note_costs(e: Evaluation, model: str) -> None:
    sampler, cache = ArSampler.load(e.run, model), open_cache(e.run, model)
    layout, bpe, _ = sampler.vocabulary
    batch = cache.batch(cache.held_out, e.stage.reconstructions)
    cost = pair_cost(sampler.network, layout.join(batch["text"], batch["codes"].long()), bpe.pad_id)
    image, text = cost.image.numpy(), cost.text.numpy()
    source = f"{model}, exact, on {len(image)} {e.where} pairs"
    e.note(f"{model}.image_nats_per_token", mean_interval(image / layout.image_length), source)
    values = 3 * e.run.recipe.size**2
    e.note(f"{model}.code_bits_per_dim", mean_interval(image / (math.log(2) * values)), source)
    e.note(f"{model}.pair_nats", mean_interval(image + text), source)
    words = text_bound(text, cost.tokens.numpy(), batch["caption"], seed=e.seed)
    e.note(f"{model}.text_nats_per_token", words.nats_per_token, source)
