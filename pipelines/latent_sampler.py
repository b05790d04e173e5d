"""Pictures from a latent model: caption -> embedding -> guided sampler -> latents -> decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from backbone.noise import noise_like
from latent import grid, sample
from latent.dit import Condition, DiT
from latent.guide import classifier_free
from latent.predict import Prediction, as_model
from latent.schedule import Schedule
from pipelines.artefact import ArtefactError
from pipelines.cache import open_cache
from pipelines.hardware import device_of
from pipelines.models import device, load_dit, load_vae
from pipelines.pictures import to_pil
from pipelines.runs import Run
from pipelines.sampling import Settings
from pipelines.stage_config import LatentStage
from tokenizer.embed import TextEncoder, load_text_encoder
from tokenizer.vae import VAE


@dataclass(frozen=True)
class LatentSampler:
    """A latent model with all that stands between a caption and a picture."""

    network: DiT
    schedule: Schedule
    prediction: Prediction
    encoder: TextEncoder
    vae: VAE
    mean: Tensor  # (c, 1, 1)
    std: Tensor  # (c, 1, 1)
    size: int  # side of the latents

    @classmethod
    def load(cls, run: Run, name: str, network: DiT | None = None) -> Self:
        """Load the stage `name`, or take a network that is being trained for it."""
        stage = run.recipe.stage[name]
        assert isinstance(stage, LatentStage)
        made = open_cache(run, name).manifest
        vae, clip = (run.need(name, kind)[0] for kind in ("vae", "clip"))
        encoder = load_text_encoder(run.stage_folder(clip)).to(device())
        if encoder.identity != made["text_encoder"]:
            raise ArtefactError(
                f"{run.stage_folder(clip)} is the text encoder {encoder.identity}, but {name} was trained with "
                f"{made['text_encoder']}. Train {name} again, or put the old encoder back."
            )
        return cls(
            network=network or load_dit(run, name),
            schedule=stage.schedule,
            prediction=stage.prediction,
            encoder=encoder,
            vae=load_vae(run, vae),
            mean=torch.tensor(made["latent_mean"], device=device())[:, None, None],
            std=torch.tensor(made["latent_std"], device=device())[:, None, None],
            size=made["latent_size"],
        )

    @torch.no_grad()
    def pictures(
        self, prompts: Sequence[str], generators: Sequence[torch.Generator], settings: Settings
    ) -> list[Image.Image]:
        """Draw one picture per prompt."""
        cond = Condition(*(part.to(device_of(self.network)) for part in self.encoder.embed(prompts)))
        null = self.network.null_condition(len(prompts))
        model = as_model(self.network, self.schedule, self.prediction)
        denoise = classifier_free(model, cond, null, settings.guidance)
        start = torch.zeros(len(prompts), len(self.mean), self.size, self.size, device=self.mean.device)
        times = grid.uniform(settings.steps)
        x = noise_like(start, generators) * self.schedule.sigma(times[0]).to(start)
        z = self._sample(settings.sampler, denoise, x, times, generators)
        return to_pil(self.vae.decode(z * self.std + self.mean))

    def _sample(
        self, sampler: str, denoise: Any, x: Tensor, times: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        match sampler:
            case "euler":
                return sample.euler(denoise, self.schedule, x, times)
            case "heun":
                return sample.heun(denoise, self.schedule, x, times)
            case "ddim":
                return sample.ddim(denoise, self.schedule, x, times)
            case "dpmpp_2m":
                return sample.dpmpp_2m(denoise, self.schedule, x, times)
            case "ancestral":
                return sample.ancestral(denoise, self.schedule, x, times, generator=generators)
            case _:
                raise ValueError(
                    f"a latent model samples with euler, heun, ddim, dpmpp_2m or ancestral, not {sampler!r}"
                )
