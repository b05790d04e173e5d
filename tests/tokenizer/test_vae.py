import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backbone.folded import FoldedConfig
from tokenizer.loss import vae_loss
from tokenizer.posterior import LOG_VAR_RANGE, Gaussian, LatentMoments
from tokenizer.vae import VAE, VAEConfig

TINY = VAEConfig(network=FoldedConfig(channels=16, encoder_blocks=1, decoder_blocks=1))


def plain(factor: int) -> FoldedConfig:
    return FoldedConfig(factor=factor, channels=16, encoder_blocks=0, decoder_blocks=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def posterior(seed: int = 0, batch: int = 3) -> Gaussian:
    source = generator(seed)
    return Gaussian(torch.randn(batch, 4, 2, 2, generator=source), torch.randn(batch, 4, 2, 2, generator=source))


def test_kl_equals_that_of_torch_distributions():
    q = posterior()
    q_oracle = torch.distributions.Normal(q.mean, (q.log_var / 2).exp())
    expected = torch.distributions.kl_divergence(q_oracle, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(q.kl(), expected)


def test_kl_of_the_prior_is_zero():
    assert torch.equal(Gaussian(torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3)).kl(), torch.zeros(2))


def test_samples_have_the_mean_and_deviation_of_the_posterior():
    q = Gaussian(torch.full((1, 2, 256, 256), 0.7), torch.full((1, 2, 256, 256), -1.5))
    z = q.sample(generator())
    assert z.mean().item() == pytest.approx(0.7, abs=0.01)
    assert z.std().item() == pytest.approx(0.4724, rel=0.01)


def test_sample_is_differentiable_in_mean_and_log_variance():
    mean, log_var = torch.zeros(1, 1, 2, 2, requires_grad=True), torch.zeros(1, 1, 2, 2, requires_grad=True)
    z = Gaussian(mean, log_var).sample(generator())
    z.sum().backward()
    assert mean.grad is not None and log_var.grad is not None
    torch.testing.assert_close(mean.grad, torch.ones_like(mean))
    torch.testing.assert_close(log_var.grad, z.detach() / 2)  # d exp(l / 2) eps / d l at l = 0, mean = 0


def test_an_item_with_its_own_generator_does_not_depend_on_its_batch():
    q = posterior(batch=3)
    alone = Gaussian(q.mean[1:2], q.log_var[1:2]).sample([generator(1)])
    together = q.sample([generator(0), generator(1), generator(2)])
    assert torch.equal(together[1:2], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_features_give_a_finite_float32_posterior(dtype: torch.dtype):
    features = torch.full((1, 2, 1, 2), 6e4, dtype=dtype)
    features[..., 1] *= -1
    features[:, :1] = 1
    q = Gaussian.of(features)
    assert q.log_var.dtype == torch.float32
    assert q.log_var.flatten().tolist() == [LOG_VAR_RANGE[1], LOG_VAR_RANGE[0]]
    assert q.kl().isfinite().all() and q.sample(generator()).isfinite().all()


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 2, 4, 8]), st.integers(1, 6))
def test_latents_are_smaller_by_the_factor_and_decode_to_the_same_size(h: int, w: int, factor: int, channels: int):
    model = VAE(VAEConfig(network=plain(factor), latent_channels=channels))
    x = torch.zeros(1, 3, h * factor, w * factor)
    output = model(x, generator())
    assert output.posterior.mean.shape == output.posterior.log_var.shape == (1, channels, h, w)
    assert output.x_hat.shape == x.shape
    assert model.downsample == factor


def test_a_size_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="30 x 32"):
        VAE(TINY).encode(torch.zeros(1, 3, 30, 32))


def test_training_on_one_batch_lowers_its_loss():
    torch.manual_seed(0)
    model, source = VAE(TINY), generator()
    x = torch.rand(4, 3, 16, 16, generator=source) * 2 - 1
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        output = model(x, source)
        loss = vae_loss(output.x_hat, x, output.posterior, kind="mixed", weight=1e-4).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_moments_over_batches_equal_those_of_many_samples():
    parts = [posterior(seed, batch=2) for seed in range(3)]
    moments = LatentMoments()
    for part in parts:
        moments.update(part)
    mean, std = moments.result()
    z = torch.cat([part.sample(generator(100 + k)) for k in range(4000) for part in parts])
    torch.testing.assert_close(mean, z.double().mean((0, 2, 3)), rtol=0, atol=0.02)
    torch.testing.assert_close(std, z.double().std((0, 2, 3)), rtol=0.02, atol=0)


@pytest.mark.parametrize(("field", "value"), [("latent_channels", 0), ("kl_weight", -1.0)])
def test_a_value_out_of_range_is_named_with_a_remedy(field: str, value: float):
    with pytest.raises(ValueError, match=rf"{field} is {value}, expected .*\. (Use|Try) "):
        VAEConfig(**{field: value})  # type: ignore[arg-type]


def test_a_kl_that_is_not_weighed_is_the_bound_itself_or_weighed_as_usual():
    assert [VAEConfig(variance=kind).kl_weight for kind in ("none", "fixed", "learned")] == [2e-3, 1.0, 1.0]
    given = VAEConfig(variance="learned", kl_weight=0.5)
    assert given.kl_weight == given.weight == 0.5
    assert dataclasses.replace(given) == given  # what was filled in can be given


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"variance": "fixed", "reconstruction": "l1"}, r"reconstruction is 'l1', but variance = 'fixed'.*Leave rec"),
        ({"scale": 0.2}, r"scale is 0\.2, but variance = 'none'.*Leave scale out"),
    ],
)
def test_a_setting_that_a_variance_makes_no_use_of_is_refused(settings, words: str):
    with pytest.raises(ValueError, match=words):
        VAEConfig(**settings)


@pytest.mark.parametrize("change", [{"kl_warmup": 0.1}, {"free_bits": 0.5}])
def test_settings_of_a_kl_that_weighs_nothing_are_refused(change: dict):
    (name,) = change
    with pytest.raises(ValueError, match=rf"kl_weight is 0.*{name}.*Leave"):
        VAEConfig(kl_weight=0.0, **change)
