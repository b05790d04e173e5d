"""Schedules of several spans on one clock, learned: which modality is masked first (GenMD4, arXiv:2406.04329, sec. 6).

While all tokens share one schedule, the bound does not depend on it. Where text and image have schedules of their own,
it does: the order in which the sides come up is part of the model, and can be learned with the network or after it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backbone.noise import Randomness, uniform
from discrete.loss import sample_times, token_nll
from discrete.predict import Denoise
from discrete.schedule import Polynomial, Spans

NEAREST = 1e-6  # times keep this distance from 1, where a token that is still visible would be impossible


class LearnedPowers(nn.Module):
    """alpha_t = 1 - t^power for each span, the powers being learned; only their ratios matter, their mean log is 0."""

    def __init__(self, lengths: tuple[int, ...]) -> None:
        """lengths: tokens of each span, one behind the other."""
        super().__init__()
        self.lengths = lengths
        self.log_powers = nn.Parameter(torch.zeros(len(lengths)))

    def powers(self) -> Tensor:
        """Powers of the spans, (number of spans,)."""
        return (self.log_powers - self.log_powers.mean()).exp()

    def schedule(self) -> Spans:
        """The schedule as it stands, for samplers."""
        parts = tuple(Polynomial(power=power) for power in self.powers().tolist())
        return Spans(parts=parts, lengths=self.lengths)

    def bound(self, denoise: Denoise, x: Tensor, *, mask_id: int, generator: Randomness) -> Tensor:
        """Estimate the bound (B,) in nats, whose gradient is unbiased for the powers and for the denoiser.

            sum_i power_i / t [x_t,i = mask] (-log p(x_i | x_t)),     t ~ U(0, 1]

        The powers act through the weights and through what is masked: for the latter two maskings of each text at one
        time stand against each other (REINFORCE, leave one out). x: (B, L) int64. Calls the denoiser once, on both.
        """
        t = sample_times("stratified", len(x), generator).to(x.device).clamp_max(1 - NEAREST)[:, None]  # (B, 1)
        power = self.powers().double().repeat_interleave(torch.tensor(self.lengths, device=x.device))  # (L,)
        log_hidden = power * t.log()  # (B, L): log (1 - alpha_t)
        hidden = [uniform(x.shape, generator, device=x.device) < log_hidden.exp() for _ in range(2)]
        both = torch.cat([torch.where(one, mask_id, x) for one in hidden])
        nll = token_nll(denoise(both, t[:, 0].repeat(2)), x.repeat(2, 1), both == mask_id).double()
        first, second = (nll * power / t.repeat(2, 1)).sum(-1).chunk(2)  # (B,) each
        log_q = [torch.where(one, log_hidden, torch.log(-torch.expm1(log_hidden))).sum(-1) for one in hidden]
        score = 0.5 * (first - second).detach() * (log_q[0] - log_q[1])
        return 0.5 * (first + second) + score - score.detach()
