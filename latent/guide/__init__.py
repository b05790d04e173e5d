"""Guidance: combinators that give a Denoise, so that no sampler knows that guidance exists.

A pair of estimates comes from a condition and its absence (`classifier_free`) or from a good and a weak model
(`autoguidance`), and a rule combines them. A number stands for plain extrapolation. Every rule serves both pairs, and a
scale that changes over time is a rule as well:

    def falling(main: Estimate, weak: Estimate, x_t: Tensor, t: Tensor) -> Estimate:
        return extrapolate(main, weak, 1 + 6 * t)
    denoise = classifier_free(model, cond, null, falling)

A negative prompt is the null condition: pass what the sample should keep away from. `thresholded` and `classifier` wrap
a single Denoise, guided or not. Every result satisfies x_t = alpha x + sigma eps.
"""

from latent.guide.gradient import classifier
from latent.guide.pair import Rule, autoguidance, classifier_free, extrapolate
from latent.guide.rules import projected, rescaled, zero_star
from latent.guide.threshold import thresholded

__all__ = [
    "Rule",
    "autoguidance",
    "classifier",
    "classifier_free",
    "extrapolate",
    "projected",
    "rescaled",
    "thresholded",
    "zero_star",
]
