"""Stage two: the autoregressive prior over cached tokens, as a task of the one loop."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from discrete.picture_prior import PicturePrior, losses
from pipelines.ar_sampler import ArSampler
from pipelines.loop import train
from pipelines.models import plain
from pipelines.prior_cost import pair_cost
from pipelines.runs import Run
from pipelines.sampling import sample_grid
from pipelines.stage_config import ArStage
from pipelines.task import Batch
from pipelines.token_task import TokenTask


class ArTask(TokenTask):
    """Each token of [text | image tokens] from those before it."""

    criterion = "image_nats_per_token"

    def __init__(self, run: Run, name: str, stage: ArStage) -> None:
        self.stage = stage
        super().__init__(run, name, stage)

    def build(self) -> PicturePrior:
        """Return a new causal transformer."""
        return PicturePrior(self.stage.model, self.layout)

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Nats per token of the image, and of the text by its weight."""
        stage, x = self.stage, self.layout.join(batch["text"], batch["codes"].long())  # (B, L)
        options = {"text_weight": stage.text_weight, "caption_dropout": stage.caption_dropout}
        total, image, text = losses(network, x, self.layout, **options, generator=generator)
        return total, {"image": image.detach(), "text": text.detach()}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Exact costs of held-out pairs: of the codes given the text, of the codes alone, and of the text."""
        prior: PicturePrior = network  # type: ignore[assignment]
        x = self.layout.join(self.held_out["text"], self.held_out["codes"].long())
        cost, alone = pair_cost(prior, x, self.bpe.pad_id), pair_cost(prior, x, self.bpe.pad_id, hidden=True)
        return {
            "image_nats_per_token": cost.image_per_token,
            "image_nats_per_token_alone": alone.image_per_token,
            "text_nats_per_token": cost.text_per_token,
        }

    def pictures(self, network: nn.Module) -> dict[str, Image.Image]:
        """Samples for held-out captions."""
        sampler = ArSampler.load(self.run, self.name, network)  # type: ignore[arg-type]
        with torch.compiler.set_stance("force_eager"):  # the memories grow with every code: no shape comes twice
            return {"samples": sample_grid(sampler, self.held_out["caption"], self.run.recipe.settings_for(self.name))}


def train_ar(run: Run, name: str, stage: ArStage) -> dict[str, Any]:
    """Train an autoregressive model."""
    task = ArTask(run, name, stage)
    facts = train(task, stage.training, run.stage_folder(name), seed=run.recipe.seed + 1, name=name)
    return {
        **facts,
        "model": plain(stage.model),
        "layout": plain(task.layout),
        "mask_id": task.layout.mask_id,
        "tokenizer": task.cache.manifest["tokenizer"],
    }
