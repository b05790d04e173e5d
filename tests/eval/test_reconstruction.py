import numpy as np
import pytest

from eval.features import paired_distance
from eval.reconstruction import (
    CAP,
    codebook,
    count_codes,
    perplexity_interval,
    psnr,
    ssim,
    summarise_psnr,
    top_share_interval,
)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.RandomState(0)
    smooth = np.cumsum(np.cumsum(rng.randn(4, 3, 40, 33), 2), 3)
    real = smooth / np.abs(smooth).max()
    return real, real + 0.1 * rng.randn(*real.shape)


def test_psnr_agrees_with_skimage(pictures):
    metrics = pytest.importorskip("skimage.metrics")
    real, fake = pictures
    oracle = [metrics.peak_signal_noise_ratio(a, b.clip(-1, 1), data_range=2) for a, b in zip(real, fake, strict=True)]
    assert psnr(real, fake) == pytest.approx(oracle, abs=1e-10)


def test_psnr_is_the_mean_of_decibels_not_the_decibels_of_the_mean():
    real = np.zeros((2, 3, 4, 4))
    fake = np.full_like(real, 2 * 0.1)  # MSE 0.01 and 0.0001 of the squared range
    fake[1] = 2 * 0.01
    found = summarise_psnr(psnr(real, fake)).interval.value
    pooled = -10 * np.log10((0.01 + 0.0001) / 2)
    assert found == pytest.approx(30.0)
    assert pooled == pytest.approx(22.97, abs=0.005)


def test_rounding_costs_six_decibels_less_than_truncation():
    x = np.random.RandomState(1).rand(4, 3, 64, 64)  # in [0, 1], moved to [-1, 1]
    rounded, truncated = np.round(255 * x) / 255, np.floor(255 * x) / 255
    assert psnr(2 * x - 1, 2 * rounded - 1).mean() == pytest.approx(10 * np.log10(12 * 255**2), abs=0.05)
    assert psnr(2 * x - 1, 2 * truncated - 1).mean() == pytest.approx(10 * np.log10(3 * 255**2), abs=0.05)


def test_uint8_and_float_pictures_give_one_psnr():
    a, b = np.random.RandomState(2).randint(0, 256, (2, 3, 8, 8, 3)).astype(np.uint8)
    assert psnr(a, b) == pytest.approx(psnr(a / 127.5 - 1, b / 127.5 - 1))


def test_bytes_as_floats_and_broken_pictures_are_refused_by_all(pictures):
    real = np.zeros((3, 3, 16, 16))
    broken = real.copy()
    broken[1, 0, 0, 0] = np.nan
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match=r"fake pictures lie in \[0, 255\], expected about \[-1, 1\]: scale"):
            measure(real, np.linspace(0, 255, real.size).reshape(real.shape))
        with pytest.raises(ValueError, match="1 of 3 fake pictures hold NaN"):
            measure(real, broken)
        with pytest.raises(ValueError, match=r"real pictures must lie in \[-1, 1\], got \[0, 255\]"):
            measure(np.linspace(0, 255, real.size).reshape(real.shape), real)
        with pytest.raises(ValueError, match=r"with pixels, got \(3, 3, 0, 16\)"):
            measure(real[:, :, :0], real[:, :, :0])
    with pytest.raises(ValueError, match="paired features hold NaN"):
        paired_distance(np.full((2, 3), np.nan), np.zeros((2, 3)))


def test_reconstructions_are_clamped_first(pictures):
    real = np.ones((1, 3, 4, 4))
    assert psnr(real, real + 5)[0] == CAP


def test_exact_pictures_are_capped_and_counted(pictures):
    real, fake = pictures
    found = summarise_psnr(psnr(real, np.concatenate([real[:1], fake[1:]])))
    assert found.capped == 1
    assert np.isfinite(found.interval.high)


def test_ssim_agrees_with_skimage(pictures):
    metrics = pytest.importorskip("skimage.metrics")
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    real, fake = pictures
    oracle = [
        metrics.structural_similarity(a, b.clip(-1, 1), data_range=2, channel_axis=0, **options)
        for a, b in zip(real, fake, strict=True)
    ]
    assert ssim(real, fake) == pytest.approx(oracle, abs=1e-5)
    first, second = ((x.clip(-1, 1) * 127.5 + 127.5).round().astype(np.uint8).transpose(0, 2, 3, 1) for x in pictures)
    oracle = [
        metrics.structural_similarity(a, b, data_range=255, channel_axis=2, **options)
        for a, b in zip(first, second, strict=True)
    ]
    assert ssim(first, second) == pytest.approx(oracle, abs=1e-5)


def test_ssim_of_a_picture_with_itself_is_one(pictures):
    assert ssim(pictures[0], pictures[0]) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("real", "fake", "words"),
    [
        (np.zeros((1, 3, 4, 4)), np.zeros((1, 3, 4, 5)), "one shape"),
        (np.zeros((1, 3, 4, 4)), np.zeros((1, 3, 4, 4), np.uint8), "both be uint8"),
        (np.full((1, 3, 4, 4), 255.0), np.zeros((1, 3, 4, 4)), r"\[-1, 1\]"),
        (np.zeros((1, 3, 4, 4)), np.full((1, 3, 4, 4), np.nan), "NaN"),
    ],
)
def test_bad_pictures_are_refused(real, fake, words):
    with pytest.raises(ValueError, match=words):
        psnr(real, fake)


def test_ssim_refuses_pictures_smaller_than_its_window():
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(np.zeros((1, 3, 10, 32)), np.zeros((1, 3, 10, 32)))


def test_codebook_counts_what_is_dead():
    found = codebook([10] * 4 + [0] * 4)
    assert (found.dead, found.top_share, found.tokens) == (4, 0.25, 40)
    assert np.isnan(found.usage_at_subsample)


def test_perplexity_of_the_split_is_not_that_of_its_batches():
    batches = [np.full(100, i) for i in range(4)]  # one code per batch
    counts = sum(count_codes(b, 8) for b in batches)
    assert codebook(counts).perplexity == pytest.approx(4)
    assert np.mean([codebook(count_codes(b, 8)).perplexity for b in batches]) == pytest.approx(1)  # the broken twin


def patchy(n, seed):
    """Codes (n, 30) of pictures that each keep to three of twelve codes."""
    rng = np.random.default_rng(seed)
    palettes = np.argsort(np.log(np.arange(12, 0, -1)) + rng.gumbel(size=(n, 12)), 1)[:, :3]  # unequal chances
    return np.take_along_axis(palettes, rng.integers(0, 3, (n, 30)), 1)


def test_an_entropy_without_a_picture_is_that_of_the_other_pictures():
    codes = patchy(8, 0)
    entropies = np.log([codebook(count_codes(np.delete(codes, i, 0), 12)).perplexity for i in range(8)])
    spread = np.sqrt(7 / 8 * ((entropies - entropies.mean()) ** 2).sum())
    found = perplexity_interval(codes, 12)
    assert found.value == pytest.approx(codebook(count_codes(codes, 12)).perplexity) and found.n == 8
    half = 2.3646242515927844 * spread  # Student's t for 7 degrees of freedom
    ends = np.log([found.low, found.high]) - np.log(found.value)
    assert ends == pytest.approx([-half, half], abs=1e-10)


def test_the_interval_of_a_perplexity_covers_the_truth_where_pictures_keep_to_few_codes():
    truth = perplexity_interval(patchy(20_000, 99), 12).value
    found = [perplexity_interval(patchy(150, seed), 12) for seed in range(100)]
    hits = sum(one.low <= truth <= one.high for one in found)
    tokens = [perplexity_interval(patchy(150, seed).reshape(-1, 1), 12) for seed in range(100)]
    naive = sum(one.low <= truth <= one.high for one in tokens)  # the twin that takes every token for itself
    assert hits >= 88 and naive < 70, (hits, naive)


def test_the_share_of_the_commonest_code_is_a_mean_over_pictures():
    found = top_share_interval([[[0, 0], [0, 1]], [[2, 2], [0, 1]]], 3)
    assert found.value == pytest.approx(0.5) == codebook([4, 2, 2]).top_share
    assert found.n == 2 and found.low < 0.25 < 0.75 < found.high
    assert np.isinf(perplexity_interval([[0, 1]], 3).high)


def test_usage_at_a_subsample_is_the_expected_usage(monkeypatch):
    monkeypatch.setattr("eval.reconstruction.SUBSAMPLE", 20)
    counts = np.array([50, 30, 5, 1, 0])
    tokens, rng = np.repeat(np.arange(5), counts), np.random.RandomState(0)
    drawn = [len(np.unique(rng.choice(tokens, 20, replace=False))) / 5 for _ in range(4000)]
    assert codebook(counts).usage_at_subsample == pytest.approx(np.mean(drawn), abs=0.006)


def test_codes_outside_the_book_are_refused():
    with pytest.raises(ValueError, match=r"expected \[0, 3\]"):
        count_codes([0, 4], 4)
    with pytest.raises(ValueError, match="not all zero"):
        codebook([0, 0])
