"""UniPC: a multistep predictor whose next evaluation also corrects it, so that the correction is free."""

from __future__ import annotations

import torch
from torch import Tensor

from latent.predict import Denoise, combine, widen
from latent.sample.multistep import History, exponential_steps, mean_estimate
from latent.sample.step import steps
from latent.schedule import Schedule


@torch.no_grad()
def unipc(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor, *, order: int = 2) -> Tensor:
    """UniPC for data prediction with B(h) = e^h - 1, "bh2" (arXiv:2302.04867).

        predict   x_s = (sigma_s / sigma_t) x_t - alpha_s (e^-h - 1) D,   D from the last `order` estimates
        correct   the same step again, D from these and the estimate made at the predicted x_s

    D: see `mean_estimate`; the predictors of order 1, 2 and 3 are `ddim`, `dpmpp_2m` and `dpmpp_3m`. The corrector is
    one order higher. Lower order while estimates are few; where a step in lambda is infinite, order 1, and at the start
    of the path corrected by the mean of both estimates. Calls the denoiser N times: the last step is not corrected.
    order: 1 to 3. Returns (B, ...) at times[-1]. Raises ValueError for another order.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"UniPC of order {order}, expected 1, 2 or 3; use 2, or 3 with fine grids")
    x, path = widen(x), steps(times)
    history = History(order - 1)
    x_hat, _ = denoise(x, path[0][0])
    for (_, s), (start, h, kept, of_d, _) in zip(path, exponential_steps(schedule, path), strict=True):
        nodes = history.seen_from(start, h)
        x_s = combine(kept, x, of_d, mean_estimate(x_hat, nodes, h))
        if s > path[-1][1]:
            ahead, _ = denoise(x_s, s)
            x_s = combine(kept, x, of_d, mean_estimate(x_hat, [*nodes, (1.0, ahead)], h))
            history.add(start, x_hat)
            x_hat = ahead
        x = x_s
    return x
