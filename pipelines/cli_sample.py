"""The verbs `palimpsest sample ...`: pictures, texts and captions from a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

Words = Annotated[str, tyro.conf.Positional]


def sample_image(
    prompt: Words, run: Path = Path("runs/scenes"), model: str | None = None, out: Path = Path("samples"),
    count: int = 1, seed: int = 0, size: str | None = None, sampler: str | None = None, steps: int | None = None,
    guidance: float | None = None, rule: str | None = None, interval: tuple[float, float] | None = None,
    negative: str | None = None, classifier: str | None = None, classifier_scale: float | None = None,
    grid: str | None = None, start: float | None = None, weak: str | None = None, threshold: float | None = None,
    tolerance: float | None = None, langevin_steps: int | None = None, temperature: float | None = None,
    top_k: int | None = None, top_p: float | None = None, bound: float | None = None, eta: float | None = None,
    schedule: str | None = None, choice_temperature: float | None = None, scale: int = 8,
) -> None:  # fmt: skip
    """Draw pictures for a prompt; a JSON file beside each says how it was made.

    Args:
        prompt: what to draw, such as "a large red star on a sky background".
        run: folder of a finished run.
        model: stage to draw with; the first latent model by default, else the masked one, else the autoregressive one.
        out: folder for the pictures.
        count: how many.
        seed: a picture depends on the prompt, the seed, its size and its number alone.
        size: of a latent model, height and width in pixels, such as 192x320, or one number for a square; by default the
            square that the run's data has. Those that it was trained on come out best.
        sampler: such as dpmpp_2m, unipc, heun or ancestral; a wrong name lists them all. The run's own by default.
        steps: sampling steps; the run's own by default.
        guidance: classifier-free guidance scale; the run's own by default.
        rule: how guidance combines its branches: plain, rescaled, projected or zero_star.
        interval: times between which guidance acts, such as 0.2 0.8; 0 is data and 1 is noise.
        negative: what to keep away from, such as "a blue circle".
        classifier: stage of a classifier whose gradient guides as well, such as match; on flows add --interval 0 0.9.
        classifier_scale: of that gradient; 1 is Bayes' rule, more is sharper.
        grid: where the steps lie: uniform, karras, log_snr or levels.
        start: time of the first step, below 1 for samplers that need some signal, such as 0.999.
        weak: stage of a weaker model that guides in place of the unconditional branch (autoguidance).
        threshold: dynamic thresholding: latents beyond this many standard deviations are scaled back, such as 3.
        tolerance: of dormand_prince, which finds its own steps, such as 1e-3.
        langevin_steps: of annealed_langevin, at each level of the grid.
        temperature: of a masked or autoregressive model; below 1, tokens are drawn from a sharper law than its own.
        top_k: of the same: draw from so many of the likeliest tokens.
        top_p: of the same: draw from the likeliest tokens that together have this probability.
        bound: of the masked sampler entropy_bound, in nats, in place of steps.
        eta: of the masked remask samplers: how much is hidden again.
        schedule: of a masked model, how fast tokens are revealed: linear, cosine (slowly at first) or square.
        choice_temperature: of the masked sampler confidence: noise on the order; 4.5 and cosine are MaskGIT's.
        scale: each pixel is drawn this wide.
    """
    from pipelines.pipeline import load

    asked = {"sampler": sampler, "steps": steps, "guidance": guidance, "rule": rule, "interval": interval}
    asked |= {"negative": negative, "grid": grid, "start": start}
    asked |= {"classifier": classifier, "classifier_scale": classifier_scale, "weak": weak, "threshold": threshold}
    asked |= {"tolerance": tolerance, "langevin_steps": langevin_steps, "temperature": temperature}
    asked |= {"top_k": top_k, "top_p": top_p, "bound": bound, "eta": eta, "schedule": schedule}
    asked |= {"choice_temperature": choice_temperature}
    paths = load(run).save([prompt] * count, out, model=model, seed=seed, size=size, scale=scale, **asked)
    print("\n".join(str(path) for path in paths))


def sample_text(
    run: Path = Path("runs/scenes"), prompt: str = "", model: str | None = None, count: int = 5, seed: int = 0,
    length: int | None = None, sampler: str | None = None, steps: int | None = None, temperature: float | None = None,
    top_k: int | None = None, top_p: float | None = None, bound: float | None = None, eta: float | None = None,
    loop: float | None = None, loop_at: float | None = None, block: int | None = None, schedule: str | None = None,
    choice_temperature: float | None = None,
) -> None:  # fmt: skip
    """Write texts with a text model, or with a masked model of pictures, without any picture.

    Args:
        run: folder of a finished run.
        prompt: what the text holds, such as "ROMEO:"; [mask:20] in it is a gap of 20 tokens, for models that fill in.
        model: stage to write with; the first text model by default, else the masked model of pictures.
        count: how many.
        seed: the texts depend on it, the prompt and their number alone.
        length: tokens of a text. Masked models write longer ones than they were trained on by blocks, an autoregressive
            model goes on, and models of uniform states and of D3PM refuse.
        sampler: of masked models, such as masked_ancestral, confidence, entropy_bound or remask_cap; a wrong name lists
            them all.
        steps: sampling steps (of each block, where there are blocks). By default half as many as a text has tokens;
            four for each token of a block of models that were trained on blocks; all steps of D3PM; and one for each
            token of first_hitting, whose calls reveal several tokens where they are fewer, and of captions.
        temperature: below 1, tokens are drawn from a sharper law than the model's.
        top_k: draw from so many of the likeliest tokens.
        top_p: draw from the likeliest tokens that together have this probability.
        bound: of entropy_bound, in nats, in place of steps.
        eta: of the remask samplers: how much is hidden again.
        loop: of remask_loop: share of the steps that it stays at one time.
        loop_at: that time; 0 is data and 1 all masked.
        block: tokens that are filled in before those behind them.
        schedule: how fast tokens are revealed: linear, cosine (slowly at first) or square (quickly at first).
        choice_temperature: of confidence: noise on the order; 4.5 together with --schedule cosine is MaskGIT.
    """
    from pipelines.pipeline import load

    asked = {"sampler": sampler, "steps": steps, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    asked |= {"bound": bound, "eta": eta, "loop": loop, "loop_at": loop_at, "block": block, "schedule": schedule}
    asked |= {"choice_temperature": choice_temperature}
    texts = load(run).texts(count, seed=seed, model=model, prompt=prompt, length=length, **asked)
    print("\n\n".join(texts) if any("\n" in text for text in texts) else "\n".join(texts))


def sample_caption(
    picture: Annotated[Path, tyro.conf.Positional], run: Path = Path("runs/scenes"), model: str | None = None,
    seed: int = 0, sampler: str | None = None, steps: int | None = None, guidance: float | None = None,
    temperature: float | None = None, top_k: int | None = None, top_p: float | None = None,
) -> None:  # fmt: skip
    """Describe a picture with a masked model.

    Args:
        picture: an image file; it is cropped to a square and resized to the run's size.
        run: folder of a finished run.
        model: stage to write with; the first masked one by default.
        seed: of the draws.
        sampler: confidence by default; a wrong name lists them all.
        steps: sampling steps; one for each token by default.
        guidance: how strongly the picture leads; the run's caption_guidance by default, and 1 is the model itself.
        temperature: below 1, words are drawn from a sharper law than the model's.
        top_k: draw from so many of the likeliest tokens.
        top_p: draw from the likeliest tokens that together have this probability.
    """
    from pipelines.pipeline import load

    asked = {"sampler": sampler, "steps": steps, "guidance": guidance, "temperature": temperature}
    asked |= {"top_k": top_k, "top_p": top_p}
    print(load(run).caption_file(picture, seed=seed, model=model, **asked))


def sample_infill(
    picture: Annotated[Path, tyro.conf.Positional], caption: str = "",
    box: tuple[float, float, float, float] = (0.5, 0.0, 1.0, 1.0),
    words_alone: bool = False, run: Path = Path("runs/scenes"), model: str | None = None,
    out: Path = Path("samples/infill.png"), seed: int = 0, sampler: str | None = None, steps: int | None = None,
    guidance: float | None = None, temperature: float | None = None, top_k: int | None = None,
    top_p: float | None = None, scale: int = 8,
) -> None:  # fmt: skip
    """Fill a hidden box of a picture, the caption's words marked [mask], or both, with a masked model.

    Args:
        picture: an image file.
        caption: what the whole picture shows; words that read [mask] are filled in, none leaves all open.
        box: left, top, right, bottom of the hidden part, as shares of the side.
        words_alone: hide no part of the picture, only the words marked [mask]; the box is then without meaning.
        run: folder of a finished run.
        model: stage to fill in with; the first masked one by default.
        out: where the picture goes.
        seed: of the draws.
        sampler: such as masked_ancestral, confidence or remask_cap; the run's own by default.
        steps: sampling steps; the run's own by default.
        guidance: how strongly the known words lead; 1, which is the model itself, by default.
        temperature: below 1, tokens are drawn from a sharper law than the model's; the run's own by default.
        top_k: draw from so many of the likeliest tokens.
        top_p: draw from the likeliest tokens that together have this probability.
        scale: each pixel is drawn this wide.
    """
    from pipelines.pipeline import load

    hidden = None if words_alone else box
    asked = {"sampler": sampler, "steps": steps, "guidance": guidance, "temperature": temperature}
    asked |= {"top_k": top_k, "top_p": top_p}
    print(load(run).infill_file(picture, caption, hidden, out, seed=seed, scale=scale, model=model, **asked))


def sample_prior(
    run: Path = Path("runs/scenes"), model: str | None = None, count: int = 16, out: Path = Path("samples"),
    seed: int = 0, scale: int = 8,
) -> None:  # fmt: skip
    """Draw pictures from the prior of an autoencoder, without any prompt and without stage two.

    Args:
        run: folder of a finished run.
        model: stage of kind vae to draw with; the first one by default. One with a learned prior is what this is for.
        count: how many.
        out: folder for the pictures.
        seed: a picture depends on it and its number alone.
        scale: each pixel is drawn this wide.
    """
    from pipelines.pipeline import load

    print("\n".join(str(path) for path in load(run).save_prior(count, out, seed=seed, model=model, scale=scale)))


def sample_pair(
    run: Path = Path("runs/scenes"), model: str | None = None, count: int = 4, out: Path = Path("samples"),
    seed: int = 0, sampler: str | None = None, steps: int | None = None, temperature: float | None = None,
    top_k: int | None = None, top_p: float | None = None, bound: float | None = None, eta: float | None = None,
    schedule: str | None = None, choice_temperature: float | None = None, scale: int = 8,
) -> None:  # fmt: skip
    """Make pictures and their captions from nothing, both at once, with a masked model.

    A schedule that was learned for each side is followed by masked_ancestral, cached and the remask samplers.

    Args:
        run: folder of a finished run.
        model: stage to draw with; the first masked one by default.
        count: how many.
        out: folder for the pictures.
        seed: a pair depends on it and its number alone.
        sampler: such as masked_ancestral, confidence or remask_cap; the run's own by default.
        steps: sampling steps; the run's own by default.
        temperature: below 1, tokens are drawn from a sharper law than the model's.
        top_k: draw from so many of the likeliest tokens.
        top_p: draw from the likeliest tokens that together have this probability.
        bound: of entropy_bound, in nats, in place of steps.
        eta: of the remask samplers: how much is hidden again.
        schedule: how fast tokens are revealed: linear, cosine (slowly at first) or square.
        choice_temperature: of confidence: noise on the order.
        scale: each pixel is drawn this wide.
    """
    from pipelines.pipeline import load

    asked = {"sampler": sampler, "steps": steps, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    asked |= {"bound": bound, "eta": eta, "schedule": schedule, "choice_temperature": choice_temperature}
    print("\n".join(load(run).save_pairs(count, out, seed=seed, model=model, scale=scale, **asked)))
