"""A finished run, ready to sample: pictures for captions, captions for pictures, texts, infilling.

`load(run).sample(prompts, seed=...)` is the Python door. Every draw of an item comes from a generator keyed by (seed,
prompt, how many equal prompts came before), so that a picture does not depend on the batch it is in.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.ar_sampler import ArSampler
from pipelines.artefact import digest, file_hash
from pipelines.asked import OF_GUIDANCE, changed, check_autoregressive, check_heeded, given, unbiased
from pipelines.data.picture import fit, open_picture, to_rgb
from pipelines.data.ratios import parse_shape
from pipelines.errors import PalimpsestError
from pipelines.latent_sampler import LatentSampler
from pipelines.masked_sampler import MaskedSampler
from pipelines.models import load_bpe, load_vae
from pipelines.pictures import from_pil, to_pil
from pipelines.runs import Run, reopen_run, stage_of
from pipelines.samplers import idle
from pipelines.sampling import PictureSampler, chunks, draw, generators
from pipelines.sampling_options import Settings
from pipelines.saved import below, check_scale, enlarged, save_picture
from pipelines.stage_config import PICTURE_MODELS, ArStage, MdlmStage
from pipelines.text.sampler import TextSampler
from pipelines.text.settings import check_settings
from pipelines.upscale_sampler import Cascade, Upscaler

log = logging.getLogger("palimpsest")
AT_ONCE = 64  # texts or pairs


@dataclass(frozen=True)
class Pipeline:
    """A finished run, ready to sample."""

    run: Run

    def stages(self, *kinds: str) -> list[str]:
        """Return the finished stages of some kinds."""
        return [n for n, s in self.run.recipe.stage.items() if s.kind in kinds and self.run.finished(n)]

    def default(self, *kinds: str) -> str:
        """Return the first finished stage of the first kind that has one."""
        for kind in kinds:
            if found := self.stages(kind):
                return found[0]
        raise PalimpsestError(
            f"{self.run.folder} has no finished stage of kind {' or '.join(kinds)}: run `palimpsest run RECIPE` first."
        )

    @cached_property
    def masked(self) -> MaskedSampler:
        """The masked model."""
        return MaskedSampler.load(self.run, self.default("mdlm"))

    def sampler(self, model: str, size: str | int | None = None) -> PictureSampler:
        """Return the sampler of a stage; size: "HxW" or N, in place of the run's squares, of latent models alone."""
        stage = stage_of(self.run, model)
        if size is not None and stage.kind in ("upscale", "mdlm", "ar"):
            raise PalimpsestError(
                f"size is {size}, but {model} is of kind {stage.kind!r} and draws squares of "
                f"{self.run.recipe.size_of(model)} pixels alone: leave size out, or name a latent model"
            )
        match stage.kind:
            case "latent" | "distill":
                found = LatentSampler.load(self.run, model)
                return found if size is None else found.sized(parse_shape(str(size)))
            case "upscale":
                base = self.run.recipe.base(model)
                settings = self.run.recipe.settings_for(base)
                return Cascade(self.sampler(base), settings, Upscaler.load(self.run, model))
            case "mdlm":
                return MaskedSampler.load(self.run, model)
            case "ar":
                return ArSampler.load(self.run, model)
        known = ", ".join(PICTURE_MODELS)
        raise PalimpsestError(f"stage {model!r} is of kind {stage.kind!r} and draws no pictures; name one of {known}.")

    def settings(self, model: str, **changes: Any) -> Settings:
        """Return the settings that the recipe generates with from `model`, with those given instead.

        changes: fields of Settings, LatentOptions or MaskedOptions; None leaves a field as it is. Raises
        PalimpsestError where options of one kind of model are given for the other.
        """
        stage, base = self.run.recipe.stage[model], self.run.recipe.settings_for(model)
        match stage:
            case MdlmStage():
                found = changed(base, "masked", changes)
                check_heeded(model, found, changes)
            case ArStage():
                found = changed(base, "autoregressive", changes)
                check_autoregressive(model, found, changes)
            case _:
                found = changed(base, "latent", changes)
        if problem := stage.unfit(found.guidance) if isinstance(stage, ArStage) else idle(found):
            raise PalimpsestError(f"{model}: {problem}")
        return found

    def sample(
        self, prompts: Sequence[str], *, seed: int = 0, model: str | None = None, size: str | int | None = None,
        batch: int = 50, **changes: Any,
    ) -> list[Image.Image]:  # fmt: skip
        """Draw one picture per prompt; `changes` are fields of Settings and its options, such as guidance=4.0.

        Picture i is a function of its prompt, the seed, the size ("HxW" or N, see `sampler`) and how many equal prompts
        stand before it, not of the batch.
        """
        name = model or self.default("latent", "mdlm", "ar")
        self.check_prompts(prompts)
        return draw(self.sampler(name, size), prompts, self.settings(name, **changes), seed=seed, batch=batch)

    def enlarge(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        *,
        seed: int = 0,
        model: str | None = None,
        **changes: Any,
    ) -> list[Image.Image]:
        """Enlarge pictures that are described by prompts; those of another size are first brought to the model's."""
        name = model or self.default("upscale")
        self.check_prompts(prompts)
        upscaler = Upscaler.load(self.run, name)
        low = from_pil([fit(image, upscaler.stage.source) for image in images])
        found = upscaler.enlarge(low, prompts, generators(prompts, seed), self.settings(name, **changes))
        return to_pil(found)

    def prior(self, count: int, *, seed: int = 0, model: str | None = None) -> list[Image.Image]:
        """Draw pictures from the prior of a VAE, without any prompt; picture i depends on the seed and i alone."""
        if count < 1:
            raise PalimpsestError(f"count is {count}, expected at least 1 picture")
        name = model or self.default("vae")
        if (kind := stage_of(self.run, name).kind) != "vae":
            raise PalimpsestError(f"stage {name!r} is of kind {kind!r}, expected an autoencoder with a prior, 'vae'")
        vae, size = load_vae(self.run, name), self.run.manifest(name)["size"]
        parts = chunks(generators([""] * count, seed), AT_ONCE)
        return [image for part in parts for image in to_pil(vae.sample(len(part), size, part))]

    def save_prior(self, count: int, out: Path, *, seed: int, model: str | None = None, scale: int = 1) -> list[Path]:
        """Draw pictures from the prior of a VAE into a folder, each with a JSON file that says how it was made."""
        check_scale(scale)
        images, name = self.prior(count, seed=seed, model=model), model or self.default("vae")
        made = {"run": str(self.run.folder), "model": name, "hash": self.run.manifest(name)["hash"], "seed": seed}
        paths = []
        for i, image in enumerate(images):
            paths.append(
                save_picture(out, digest(["prior", i, made])[:12], enlarged(image, scale), {"number": i, **made})
            )
        return paths

    def save(
        self, prompts: Sequence[str], out: Path, *, seed: int, model: str | None, size: str | int | None = None,
        scale: int = 1, **changes: Any,
    ) -> list[Path]:  # fmt: skip
        """Draw pictures into a folder, each with a JSON file that says how it was made."""
        check_scale(scale)
        name = model or self.default("latent", "mdlm", "ar")
        self.check_prompts(prompts)
        sampler, settings = self.sampler(name, size), self.settings(name, **changes)
        images = draw(sampler, prompts, settings, seed=seed)
        made_by = {"run": str(self.run.folder), "model": name, "hash": self.run.manifest(name)["hash"]}
        made_by |= {"seed": seed, **dataclasses.asdict(settings), **({} if size is None else {"size": str(size)})}
        made_by |= below(self.run, name)
        paths = []
        for i, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
            stem = digest([prompt, i, made_by])[:12]
            paths.append(save_picture(out, stem, enlarged(image, scale), {"prompt": prompt, "number": i, **made_by}))
        return paths

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse empty prompts, and warn of those that are longer than the model reads."""
        if not all(prompt.strip() for prompt in prompts):
            raise PalimpsestError("The prompt is empty: say what to draw, such as 'a red star on a sky background'.")
        bpe = load_bpe(self.run, self.default("bpe"))
        cut = [prompt for prompt, long in zip(prompts, bpe.encode(list(prompts)).truncated, strict=True) if long]
        if cut:
            log.warning("%d of %d prompts are longer than the %d tokens that are read; the rest is ignored: %.60r",
                        len(cut), len(prompts), bpe.length, cut[0])  # fmt: skip

    def texts(
        self,
        count: int,
        *,
        seed: int,
        model: str | None = None,
        prompt: str = "",
        length: int | None = None,
        **changes: Any,
    ) -> list[str]:
        """Write texts: with a text model around a prompt, or with a masked model of pictures, without any picture."""
        name = model or self.default("text_model", "mdlm")
        if count < 1:
            raise PalimpsestError(f"count is {count}, expected at least 1 text")
        draws = generators([prompt] * count, seed)
        if stage_of(self.run, name).kind == "mdlm":
            if prompt or length:
                raise PalimpsestError(f"{name} writes captions of its own length: leave prompt and length out.")
            captions = MaskedSampler.load(self.run, name)
            base = unbiased(self.run.recipe.settings_for(name), captions.layout.text_length)
            settings = changed(base, "masked", changes)
            check_heeded(name, settings, changes, unused=OF_GUIDANCE)
            return [text for part in chunks(draws, AT_ONCE) for text in captions.texts(part, settings)]
        sampler = TextSampler.load(self.run, name)
        usual = sampler.usual_settings(length, changes.get("block"), changes.get("sampler"))
        settings = changed(usual, "masked", changes)
        check_settings(sampler.objective, settings, given(changes))
        written = [
            sampler.write(len(part), part, settings, prompt=prompt, length=length) for part in chunks(draws, AT_ONCE)
        ]
        return [text.removesuffix(sampler.tokenizer.separator) for part in written for text in sampler.texts(part)]

    def captions(
        self, images: Sequence[Image.Image], *, seed: int = 0, model: str | None = None, **changes: Any
    ) -> list[str]:
        """Describe pictures of the run's size; `changes` are fields of Settings and MaskedOptions."""
        name, sampler = self._masked(model)
        settings = changed(sampler.caption_settings(self.run.recipe.settings_for(name)), "masked", changes)
        check_heeded(name, settings, changes, unused={"caption_guidance"})
        return sampler.describe(from_pil(images), generators([""] * len(images), seed), settings)[0]

    def _masked(self, model: str | None) -> tuple[str, MaskedSampler]:
        """The name of a masked model, the first one where none is given, and its sampler."""
        name = model or self.default("mdlm")
        if (kind := stage_of(self.run, name).kind) != "mdlm":
            raise PalimpsestError(f"stage {name!r} is of kind {kind!r}, expected a masked model, 'mdlm'")
        return name, self.masked if name == self.default("mdlm") else MaskedSampler.load(self.run, name)

    def open_picture(self, path: Path) -> Image.Image:
        """Read any picture as the run sees it: RGB, cropped to its middle square, resized."""
        try:
            return fit(to_rgb(open_picture(path.read_bytes())), self.run.recipe.size)
        except FileNotFoundError as error:
            raise PalimpsestError(f"There is no picture at {path}.") from error
        except ValueError as error:
            raise PalimpsestError(
                f"{path} cannot be read as a picture: {error}. Give a PNG, JPEG or WebP file."
            ) from error

    def caption_file(self, path: Path, *, seed: int, model: str | None = None, **changes: Any) -> str:
        """Describe a picture file."""
        return self.captions([self.open_picture(path)], seed=seed, model=model, **changes)[0]

    def save_pairs(
        self, count: int, out: Path, *, seed: int, scale: int = 1, model: str | None = None, **changes: Any
    ) -> list[str]:
        """Make pictures with captions from nothing, into a folder; returns a line for each."""
        check_scale(scale)
        if count < 1:
            raise PalimpsestError(f"count is {count}, expected at least 1 pair")
        name, sampler = self._masked(model)
        settings = changed(self.run.recipe.settings_for(name), "masked", changes)
        check_heeded(name, settings, changes, unused=OF_GUIDANCE)
        settings = dataclasses.replace(settings, guidance=1.0)
        parts = [sampler.pairs(part, settings) for part in chunks(generators([""] * count, seed), AT_ONCE)]
        made = {"run": str(self.run.folder), "model": name, "hash": self.run.manifest(name)["hash"], "seed": seed}
        made |= dataclasses.asdict(settings)
        lines = []
        for i, (image, caption) in enumerate(pair for part in parts for pair in zip(*part, strict=True)):
            about = {"caption": caption, "number": i, **made}
            path = save_picture(out, digest([i, made])[:12], enlarged(image, scale), about)
            lines.append(f"{path}: {caption}")
        return lines

    def infill_file(
        self, path: Path, caption: str, box: tuple[float, float, float, float] | None, out: Path, *, seed: int,
        scale: int = 1, model: str | None = None, **changes: Any,
    ) -> str:  # fmt: skip
        """Fill a hidden box of a picture file and the open words of its caption; returns the whole caption.

        Not guided unless `changes` hold a guidance scale, which then leads towards the caption's known words.
        """
        check_scale(scale)
        name, sampler = self._masked(model)
        base = dataclasses.replace(self.run.recipe.settings_for(name), guidance=1.0)
        settings = changed(base, "masked", changes)
        check_heeded(name, settings, changes, unused={"caption_guidance"})
        x = from_pil([self.open_picture(path)])
        image, words = sampler.infill(x, caption, box, generators([caption], seed), settings)
        made = {"prompt": caption, "caption": words, "picture": file_hash(path), "box": box, "seed": seed}
        made |= {"run": str(self.run.folder), "model": name, "hash": self.run.manifest(name)["hash"]}
        made |= dataclasses.asdict(settings)
        save_picture(out.parent, out.stem, enlarged(image, scale), made)
        return f"{out.with_suffix('.png')}: {words}"


def load(run: Path | str) -> Pipeline:
    """Open a finished run for sampling: `load("runs/scenes").sample(["a red star on a sky background"], seed=0)`."""
    return Pipeline(reopen_run(Path(run)))
