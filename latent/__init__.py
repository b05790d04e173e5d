"""Continuous diffusion as algebra: schedule, prediction, loss, time grid, sampler, guidance; and the networks."""
