import itertools

import pytest
import torch

from eval.reconstruction import codebook, count_codes
from tokenizer.kmeans import kmeans, lloyd, nearest, patch_kmeans_psnr, plus_plus
from tokenizer.quantize import VectorQuantizer, VQConfig


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(count: int, each: int, dim: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres (count, dim) far apart, and points (count each, dim) tightly around them, shuffled."""
    source = generator(seed)
    centres = 10 * torch.randn(count, dim, generator=source)
    points = centres.repeat_interleave(each, 0) + 0.01 * torch.randn(count * each, dim, generator=source)
    return centres, points[torch.randperm(len(points), generator=source)]


def quantizer(codes: int = 32, dim: int = 4, **options: float) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(VQConfig(codes=codes, dim=dim, **options))  # type: ignore[arg-type]


def grid(vectors: torch.Tensor) -> torch.Tensor:
    """(n, d) -> (n, d, 1, 1)."""
    return vectors[:, :, None, None]


def step(layer: VectorQuantizer, vectors: torch.Tensor) -> None:
    """One pass over vectors (n, d), and what the codebook learns from it."""
    layer(grid(vectors))
    layer.settle()


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_nearest_equals_brute_force_in_float64_also_far_from_the_origin(offset: float):
    vectors = torch.randn(500, 8, generator=generator(1)) + offset
    centres = torch.randn(64, 8, generator=generator(2)) + offset
    codes, distances = nearest(vectors, centres)
    expected = torch.cdist(vectors.double(), centres.double()).square()
    found = expected.gather(1, codes[:, None])[:, 0]
    torch.testing.assert_close(found, expected.min(1).values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(distances.double(), found, rtol=1e-4, atol=1e-4)
    assert (codes == expected.argmin(1)).float().mean() > 0.99


def test_nearest_is_exact_under_autocast():
    vectors, centres = torch.randn(500, 8, generator=generator(1)), torch.randn(256, 8, generator=generator(2))
    with torch.autocast("cpu", torch.bfloat16):
        codes, _ = nearest(vectors, centres)
    assert torch.equal(codes, nearest(vectors, centres)[0])


def test_gradient_passes_straight_through():
    layer, weight = quantizer().eval(), torch.randn(6, 4, 2, 2)
    z = torch.randn(6, 4, 2, 2, requires_grad=True)
    (layer(z).z * weight).sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, weight)


def test_output_is_the_codeword_of_the_code():
    layer = quantizer().eval()
    result = layer(torch.randn(2, 4, 3, 5))
    assert result.codes.shape == (2, 3, 5)
    torch.testing.assert_close(result.z, layer.lookup(result.codes))


def test_commitment_is_the_mean_squared_distance_to_the_codeword():
    layer, z = quantizer().eval(), torch.randn(2, 4, 3, 5)
    result = layer(z)
    expected = (z - layer.lookup(result.codes)).square().mean()
    torch.testing.assert_close(result.commitment, expected)
    torch.testing.assert_close(result.own, expected)


def test_evaluation_moves_nothing():
    layer = quantizer().eval()
    before = layer.codebook.clone()
    layer(torch.randn(8, 4, 2, 2))
    assert torch.equal(layer.codebook, before)


def test_ten_steps_of_the_moving_averages_equal_those_of_vector_quantize_pytorch():
    oracle_module = pytest.importorskip("vector_quantize_pytorch")
    layer = quantizer(decay=0.9).train()
    oracle = oracle_module.VectorQuantize(
        dim=4, codebook_size=32, decay=0.9, eps=1e-5, threshold_ema_dead_code=0, accept_image_fmap=True
    ).train()
    oracle._codebook.embed.data.copy_(layer.codebook[None])
    oracle._codebook.embed_avg.data.copy_(layer.sums[None])
    oracle._codebook.cluster_size.data.copy_(layer.cluster_size[None])
    for step in range(10):
        z = torch.randn(8, 4, 6, 6, generator=generator(step))
        ours, (theirs, codes, _) = layer(z), oracle(z)
        layer.settle()
        torch.testing.assert_close(ours.z, theirs, rtol=1e-4, atol=1e-5)
        assert torch.equal(ours.codes, codes)
    torch.testing.assert_close(layer.cluster_size, oracle._codebook.cluster_size[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.sums, oracle._codebook.embed_avg[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.codebook, oracle._codebook.embed[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("learn", ["ema", "gradient"])
def test_a_step_of_two_passes_moves_the_averages_as_one_pass_over_both(learn: str):
    parts = [torch.randn(60, 4, generator=generator(seed)) for seed in range(2)]
    halves, whole = (quantizer(decay=0.9, learn=learn).train() for _ in range(2))
    before = halves.codebook.clone()
    for part in parts:
        halves(grid(part))
        assert torch.equal(halves.codebook, before) and (halves.cluster_size == 1).all()
    halves.settle()
    step(whole, torch.cat(parts))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(halves.state_dict()[name], value)
    assert (whole.cluster_size != 1).any() and not halves.pending.any()
    kept = {name: value.clone() for name, value in halves.state_dict().items()}
    halves.settle()  # a step without a pass is none
    assert all(torch.equal(value, kept[name]) for name, value in halves.state_dict().items())


def test_moving_averages_converge_to_the_means_of_the_clusters():
    _, points = clusters(8, 64)
    layer = quantizer(8, decay=0.5)
    layer.initialise(points, generator())
    for _ in range(30):
        step(layer, points)
    codes, distances = nearest(points, layer.codebook)
    assert distances.max() < 0.01
    for code in range(8):
        torch.testing.assert_close(layer.codebook[code], points[codes == code].mean(0), rtol=1e-3, atol=1e-3)


def test_initialisation_finds_every_cluster():
    centres, points = clusters(16, 40)
    layer = quantizer(16)
    layer.initialise(points, generator())
    assert nearest(centres, layer.codebook)[1].max() < 0.01
    torch.testing.assert_close(layer.sums, layer.codebook * layer.cluster_size[:, None])


def test_initialisation_is_a_function_of_the_generator():
    vectors = torch.randn(400, 4, generator=generator(7))
    books = []
    for seed in (0, 0, 1):
        layer = quantizer(16)
        layer.initialise(vectors, generator(seed))
        books.append(layer.codebook)
    assert torch.equal(books[0], books[1])
    assert not torch.equal(books[0], books[2])


def test_plus_plus_never_draws_the_same_vector_twice():
    vectors = torch.arange(20.0)[:, None].repeat(5, 2)  # twenty distinct vectors, five times each
    drawn = plus_plus(vectors, 20, generator())
    assert len(drawn.unique(dim=0)) == 20


def test_plus_plus_goes_on_when_every_vector_is_a_centre():
    assert plus_plus(torch.ones(10, 3), 4, generator()).equal(torch.ones(4, 3))


def test_lloyd_rounds_never_raise_the_error():
    vectors = torch.randn(500, 4, generator=generator(3))
    centres = plus_plus(vectors, 16, generator(4))
    errors = [nearest(vectors, lloyd(vectors, centres, rounds))[1].sum().item() for rounds in range(6)]
    assert all(later <= earlier + 1e-3 for earlier, later in itertools.pairwise(errors))


def test_lloyd_ends_where_scikit_learn_ends_from_the_same_start():
    cluster = pytest.importorskip("sklearn.cluster")
    vectors = torch.randn(500, 4, generator=generator(3))
    start = plus_plus(vectors, 8, generator(4))
    oracle = cluster.KMeans(8, init=start.numpy(), n_init=1, max_iter=200, tol=0, algorithm="lloyd").fit(
        vectors.numpy()
    )
    expected = torch.from_numpy(oracle.cluster_centers_)
    torch.testing.assert_close(lloyd(vectors, start, 200), expected, rtol=1e-3, atol=1e-3)


def test_dead_codes_go_to_badly_served_vectors_and_forget_their_averages():
    _, points = clusters(8, 64)
    layer = quantizer(8)
    layer.initialise(points, generator())
    with torch.no_grad():  # three codes leave the data, and their averages wear off
        layer.codebook[:3] = 1e3
        layer.sums[:3] = 7.0
        layer.cluster_size[:3] = 1e-4
    ((_, rows),) = layer.revive(points, generator())
    assert rows.tolist() == [0, 1, 2]
    assert nearest(points, layer.codebook)[1].max() < 0.05
    torch.testing.assert_close(layer.sums[:3], layer.codebook[:3] * layer.cluster_size[:3, None])
    step(layer, points)  # a stale average would throw the codes out again
    assert nearest(points, layer.codebook)[1].max() < 0.05


def test_living_codes_stay_where_they_are():
    _, points = clusters(8, 64)
    layer = quantizer(8)
    layer.initialise(points, generator())
    before = layer.codebook.clone()
    assert not layer.revive(points, generator())
    assert torch.equal(layer.codebook, before)


@pytest.mark.parametrize("learn", ["ema", "gradient"])
@pytest.mark.parametrize("tokens", [2**-4, 1.0, 2**12])
def test_a_revival_is_the_same_however_many_vectors_of_each_code_a_step_has(tokens: float, learn: str):
    """A code that was just placed is alive, and moves and dies as fast as any other."""
    _, points = clusters(8, 64)
    layer = quantizer(8, decay=0.75, dead_share=0.125, learn=learn).train()
    layer.initialise(points, generator())
    book = layer.codebook.detach()
    with torch.no_grad():  # in the middle of a training, in which three codes are not used
        layer.cluster_size[:] = tokens * torch.tensor([0.0] * 3 + [1.6] * 5)
        if learn == "ema":
            layer.sums.copy_(book * layer.cluster_size[:, None])
    assert [rows.tolist() for _, rows in layer.revive(points, generator())] == [[0, 1, 2]]
    assert not layer.revive(points, generator())
    placed = book[0].clone()
    used = torch.tensor([1.0, 0, 1, 1, 1, 1, 1, 1]) * tokens
    deaths = []
    for _ in range(8):
        layer.absorb(torch.cat([used[:, None], used[:, None] * (placed + 1)], 1)[:, : layer.pending.shape[1]])
        deaths.append(torch.nonzero(layer.cluster_size < 0.125 * layer.cluster_size.mean()).flatten().tolist())
    assert deaths == [[]] * 7 + [[1]]  # 0.75^8 < 0.125 < 0.75^7, about
    moved = 1 - 0.75**8 if learn == "ema" else 0.0
    torch.testing.assert_close(book[0], placed + moved, rtol=1e-3, atol=1e-3)


def test_no_two_dead_codes_go_to_the_same_vector_where_vectors_are_few():
    layer = quantizer(16)
    with torch.no_grad():
        layer.cluster_size[1:] = 0
    before, vectors = layer.codebook.clone(), torch.randn(4, 4, generator=generator(1))
    ((_, rows),) = layer.revive(vectors, generator())
    assert rows.tolist() == [1, 2, 3, 4] and len(layer.codebook.unique(dim=0)) == 16
    assert torch.equal(layer.codebook[5:], before[5:])
    assert layer.revive(vectors, generator())[0].rows.tolist() == [5, 6, 7, 8]  # the rest have their turn


def test_revival_restores_the_use_of_a_collapsed_codebook():
    vectors = torch.randn(2000, 4, generator=generator(5))
    layer = quantizer(64, decay=0.5)
    with torch.no_grad():  # collapsed: two codes serve everything
        layer.codebook[2:] = 1e3
    for _ in range(12):
        step(layer, vectors)
        layer.revive(vectors, generator(6))
    assert codebook(count_codes(layer.codes(grid(vectors)), 64)).usage > 0.95


def test_patches_that_are_centres_come_back_whole():
    images = torch.randn(1, 3, 8, 8).clamp(-1, 1).expand(4, -1, -1, -1)  # four distinct patches
    assert (patch_kmeans_psnr(images, images, codes=4, patch=4) > 60).all()
    assert (patch_kmeans_psnr(images, images, codes=2, patch=4) < 40).all()


def test_patch_psnr_of_one_code_is_that_of_the_mean_patch():
    images = torch.rand(3, 3, 8, 8, generator=generator()) * 2 - 1
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4)  # (3, 3, 2, 2, 4, 4)
    error = (patches - patches.mean((0, 2, 3), keepdim=True)).square().mean((1, 2, 3, 4, 5))
    expected = 10 * torch.log10(4 / error.double())
    torch.testing.assert_close(patch_kmeans_psnr(images, images, codes=1, patch=4), expected, rtol=1e-4, atol=1e-4)


def test_kmeans_is_a_function_of_its_generator():
    vectors = torch.randn(300, 4, generator=generator(3))
    assert torch.equal(kmeans(vectors, 8, generator(1)), kmeans(vectors, 8, generator(1)))


@pytest.mark.parametrize(
    ("field", "value"), [("codes", 1), ("dim", 0), ("decay", 1.0), ("dead_share", 1.0), ("rounds", -1)]
)
def test_a_value_out_of_range_is_named_with_a_remedy(field: str, value: float):
    with pytest.raises(ValueError, match=rf"{field} is {value}, expected .*\. Use "):
        VQConfig(**{field: value})  # type: ignore[arg-type]
