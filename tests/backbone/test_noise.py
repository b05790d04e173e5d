import pytest
import torch
from scipy import stats

from backbone.noise import noise_like, uniform


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_noise_like_keeps_shape_and_dtype(dtype):
    x = torch.empty(5, 3, 2, dtype=dtype)
    noise = noise_like(x, generator(0))
    assert noise.shape == x.shape
    assert noise.dtype == dtype


def test_noise_is_standard_normal():
    noise = noise_like(torch.empty(20_000, dtype=torch.float64), generator(1))
    assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-3


def test_uniform_is_uniform_on_the_unit_interval():
    draws = uniform((20_000,), generator(2))
    assert draws.dtype == torch.float64
    assert 0 <= draws.min()
    assert draws.max() < 1
    assert stats.kstest(draws.numpy(), "uniform").pvalue > 1e-3


def test_uniform_has_more_than_24_random_bits():
    draws = uniform((1_000,), generator(3)) * 2**24
    assert (draws != draws.round()).float().mean() > 0.99


@pytest.mark.parametrize("shape", [(4,), (4, 7), (4, 3, 8, 8)])
def test_one_generator_per_item_makes_an_item_independent_of_its_batch(shape):
    x = torch.empty(shape)
    full = noise_like(x, [generator(s) for s in range(4)])
    assert torch.equal(full[2:3], noise_like(x[2:3], [generator(2)]))
    assert torch.equal(full[[3, 1]], noise_like(x[:2], [generator(3), generator(1)]))
    flat = uniform(shape, [generator(s) for s in range(4)])
    assert torch.equal(flat[1:2], uniform((1, *shape[1:]), [generator(1)]))


def test_one_generator_per_item_goes_on_from_its_own_state():
    sources = [generator(0), generator(1)]
    first, second = (noise_like(torch.empty(2, 9), sources) for _ in range(2))
    assert not torch.equal(first, second)


def test_a_batch_of_one_draws_the_same_from_a_generator_and_from_a_list_of_it():
    x = torch.empty(1, 3, 5)
    assert torch.equal(noise_like(x, generator(4)), noise_like(x, [generator(4)]))


def test_noise_does_not_touch_the_global_random_state():
    before = torch.get_rng_state()
    noise_like(torch.empty(8), generator(0))
    uniform((8,), generator(0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_generators_is_refused(count):
    with pytest.raises(ValueError, match="one per item"):
        noise_like(torch.empty(2, 3), [generator(s) for s in range(count)])


def test_an_empty_batch_draws_nothing():
    assert noise_like(torch.empty(0, 3), []).shape == (0, 3)
    assert uniform((0, 3), []).shape == (0, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cpu_generator_serves_a_cuda_tensor():
    noise = noise_like(torch.empty(2, 3, device="cuda"), generator(0))
    assert noise.device.type == "cuda"
    assert torch.equal(noise.cpu(), noise_like(torch.empty(2, 3), generator(0)))


def test_a_cpu_generator_draws_for_another_device():
    assert noise_like(torch.empty(2, 3, device="meta"), generator(0)).device.type == "meta"
    assert uniform((2, 3), generator(0), device="meta").device.type == "meta"
