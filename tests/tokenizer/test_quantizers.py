"""Every quantiser against vector-quantize-pytorch on the same inputs, and what all of them must do."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from eval.reconstruction import codebook, count_codes
from tokenizer.quantize import (
    FSQ,
    LFQ,
    FSQConfig,
    LFQConfig,
    QuantizerConfig,
    ResidualConfig,
    ResidualVQ,
    SimVQ,
    SimVQConfig,
    VectorQuantizer,
    VQConfig,
    quantizer_of,
)
from tokenizer.quantize.base import passed_through

oracle = pytest.importorskip("vector_quantize_pytorch")
DIM, CODES = 4, 32
CONFIGS: list[QuantizerConfig] = [
    VQConfig(codes=CODES, dim=DIM),
    VQConfig(codes=CODES, dim=DIM, learn="gradient"),
    VQConfig(codes=CODES, dim=DIM, distance="cosine"),
    VQConfig(codes=CODES, dim=DIM, learn="gradient", distance="cosine"),
    VQConfig(codes=CODES, dim=DIM, estimator="rotation"),
    ResidualConfig(depth=3, level=VQConfig(codes=8, dim=DIM)),
    ResidualConfig(depth=2, level=VQConfig(codes=8, dim=DIM, learn="gradient", estimator="rotation")),
    SimVQConfig(codes=CODES, dim=DIM),
    FSQConfig(levels=(5, 4, 3)),
    LFQConfig(bits=5),
    LFQConfig(bits=5, spherical=True, group=2),
]
each = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vectors(seed: int = 0, dim: int = DIM, count: int = 4) -> Tensor:
    return torch.randn(count, dim, 3, 5, generator=generator(seed))


def flat(z: Tensor) -> Tensor:
    """(B, d, h, w) -> (B, h w, d), as the oracle takes them."""
    return z.flatten(2).transpose(1, 2)


@each
def test_a_code_stands_for_what_the_pass_gives(config: QuantizerConfig):
    torch.manual_seed(0)
    layer, z = quantizer_of(config).eval(), vectors(dim=config.dim)
    result = layer(z)
    assert layer.vocabulary == config.codes and layer.dim == config.dim
    assert result.codes.shape == (4, 3 * layer.grids, 5) and result.codes.dtype == torch.int64
    assert 0 <= result.codes.min() and result.codes.max() < layer.vocabulary
    assert torch.equal(layer.codes(z), result.codes)
    torch.testing.assert_close(layer.lookup(result.codes), result.z)
    assert layer.codewords().shape == (layer.vocabulary, layer.dim)
    if layer.grids == 1:
        torch.testing.assert_close(layer.codewords()[result.codes].permute(0, 3, 1, 2), result.z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.codes(z), result.codes)


@each
def test_what_was_decoded_encodes_to_the_same_codes(config: QuantizerConfig):
    torch.manual_seed(0)
    layer = quantizer_of(config).eval()
    codes = layer.codes(vectors(dim=config.dim))
    if layer.grids == 1 and not isinstance(layer, FSQ):  # whose features go through a tanh first
        assert torch.equal(layer.codes(layer.lookup(codes)), codes)


@each
def test_the_encoder_learns_through_every_quantiser(config: QuantizerConfig):
    torch.manual_seed(0)
    layer, z = quantizer_of(config).train(), vectors(dim=config.dim).requires_grad_(True)
    result = layer(z)
    (result.z.square().sum() + result.own + 0.25 * result.commitment).backward()
    assert z.grad is not None and torch.isfinite(z.grad).all() and (z.grad.abs().sum(1) > 0).float().mean() > 0.9
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in layer.parameters())


@each
def test_commitment_moves_the_encoder_alone_and_own_terms_the_codes(config: QuantizerConfig):
    torch.manual_seed(0)
    layer, z = quantizer_of(config).train(), vectors(dim=config.dim).requires_grad_(True)
    result = layer(z)
    learned = list(layer.parameters())
    if result.commitment.requires_grad:
        found = torch.autograd.grad(result.commitment, [z, *learned], retain_graph=True, allow_unused=True)
        assert found[0] is not None and all(gradient is None or not gradient.any() for gradient in found[1:])
    if learned:
        found = torch.autograd.grad(result.own, [z, *learned], allow_unused=True)
        assert (found[0] is None or not found[0].any()) and all(g is not None and g.any() for g in found[1:])


def test_the_rotation_trick_equals_the_oracles_and_turns_vectors_into_codewords():
    from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

    e, q = (torch.randn(50, DIM, generator=generator(seed), dtype=torch.float64) for seed in (0, 1))
    weight = torch.randn(50, DIM, generator=generator(2), dtype=torch.float64)
    gradients = []
    for rotate in (lambda x: passed_through(x, q, "rotation"), lambda x: rotate_to(x, q)):
        x = e.clone().requires_grad_(True)
        out = rotate(x)
        torch.testing.assert_close(out, q)
        (out * weight).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)
    # A rotation and a scale: the gradient has the length of what came from above times |q| / |e|.
    size = weight.norm(dim=-1) * q.norm(dim=-1) / e.norm(dim=-1)
    torch.testing.assert_close(gradients[0].norm(dim=-1), size)


def test_rotation_of_opposite_and_of_zero_vectors_is_finite():
    e = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    out = passed_through(e, torch.tensor([[-2.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), "rotation")
    out.sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(e.grad).all()
    torch.testing.assert_close(out.detach(), torch.tensor([[-2.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), rtol=0, atol=1e-5)
    assert e.grad.abs().max() < 10


@each
def test_vectors_that_are_no_numbers_give_codes_that_are(config: QuantizerConfig):
    torch.manual_seed(0)
    layer, z = quantizer_of(config).train(), vectors(dim=config.dim)
    z[0] = torch.nan
    codes = layer(z).codes
    assert 0 <= codes.min() and codes.max() < layer.vocabulary
    assert torch.isfinite(layer.codewords()).all()


@each
def test_a_decoder_learns_from_the_same_vectors_before_and_after_codes_start(config: QuantizerConfig):
    """What `read` gives is what a codeword stands in for, and its gradient is the one passed through."""
    torch.manual_seed(0)
    layer, weight = quantizer_of(config).eval(), vectors(1, config.dim)
    z = [vectors(dim=config.dim).requires_grad_(True) for _ in range(2)]
    read, result = layer.read(z[0]), layer(z[1])
    if not isinstance(config, ResidualConfig | FSQConfig):  # whose terms are means over levels, and none
        torch.testing.assert_close(result.commitment, (read - layer.lookup(result.codes)).square().mean())
    if isinstance(config, FSQConfig):
        steps = 1 / (torch.tensor(config.levels) // 2)[:, None, None]
        assert ((read - result.z).abs() <= (0.5 + 1e-4) * steps).all()
    if "rotation" not in (getattr(config, "estimator", ""), getattr(getattr(config, "level", None), "estimator", "")):
        for out in (read, result.z):
            (out * weight).sum().backward()
        torch.testing.assert_close(z[1].grad, z[0].grad)


def test_straight_through_gradients_are_those_of_the_surrogate_by_finite_differences():
    """The surrogate of a pass at z0 is f(z + q(z0) - z0), in which the codeword stays."""
    torch.manual_seed(0)
    layer = quantizer_of(VQConfig(codes=CODES, dim=DIM)).eval()
    z0, weight = vectors(3, count=1), vectors(4, count=1)
    z = z0.clone().requires_grad_(True)
    torch.autograd.backward((torch.sin(layer(z).z) * weight).sum())
    q, step, found = layer(z0).z.double(), 1e-6, torch.zeros_like(z0)
    for index in itertools.product(*map(range, z0.shape)):
        ends = []
        for sign in (1, -1):
            moved = z0.double().clone()
            moved[index] += sign * step
            ends.append((torch.sin(moved + q - z0.double()) * weight).sum().item())
        found[index] = (ends[0] - ends[1]) / (2 * step)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, found, rtol=1e-4, atol=1e-5)


def test_ten_steps_of_a_cosine_codebook_equal_the_oracles():
    torch.manual_seed(0)
    layer = VectorQuantizer(VQConfig(codes=CODES, dim=DIM, distance="cosine", decay=0.9)).train()
    theirs = oracle.VectorQuantize(
        dim=DIM, codebook_size=CODES, decay=0.9, use_cosine_sim=True, rotation_trick=False, threshold_ema_dead_code=0
    ).train()
    theirs._codebook.embed.data.copy_(layer.codebook[None])
    theirs._codebook.embed_avg.data.copy_(layer.sums[None])
    for step in range(10):
        z = vectors(step, count=16)
        ours, (out, codes, loss) = layer(z), theirs(flat(z))
        layer.settle()
        assert torch.equal(ours.codes.flatten(1), codes)
        torch.testing.assert_close(flat(ours.z), out, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.commitment, loss.squeeze(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(layer.codebook, theirs._codebook.embed[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.cluster_size, theirs._codebook.cluster_size[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("estimator", ["straight", "rotation"])
def test_ten_steps_of_a_codebook_by_gradient_equal_the_oracles(estimator: str):
    torch.manual_seed(0)
    layer = VectorQuantizer(VQConfig(codes=CODES, dim=DIM, learn="gradient", estimator=estimator)).train()
    theirs = oracle.VectorQuantize(
        dim=DIM, codebook_size=CODES, learnable_codebook=True, ema_update=False,
        rotation_trick=estimator == "rotation", threshold_ema_dead_code=0,
    ).train()  # fmt: skip
    theirs._codebook.embed.data.copy_(layer.codebook[None])
    optimisers = [torch.optim.SGD(one.parameters(), 1.0) for one in (layer, theirs)]
    for step in range(10):
        z, theirs_z = vectors(step, count=16).requires_grad_(True), vectors(step, count=16).requires_grad_(True)
        ours, (out, codes, loss) = layer(z), theirs(flat(theirs_z))
        assert torch.equal(ours.codes.flatten(1), codes)
        (ours.own + ours.commitment + ours.z.square().mean()).backward()
        (loss.squeeze() + out.square().mean()).backward()
        torch.testing.assert_close(z.grad, theirs_z.grad, rtol=1e-4, atol=1e-6)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
    torch.testing.assert_close(layer.codebook.data, theirs._codebook.embed[0].data, rtol=1e-4, atol=1e-5)


def test_ten_steps_of_residual_codebooks_equal_the_oracles():
    torch.manual_seed(0)
    layer = ResidualVQ(ResidualConfig(depth=3, level=VQConfig(codes=16, dim=DIM, decay=0.9))).train()
    theirs = oracle.ResidualVQ(
        dim=DIM, num_quantizers=3, codebook_size=16, decay=0.9, rotation_trick=False, threshold_ema_dead_code=0
    ).train()
    for level, other in zip(layer.levels, theirs.layers, strict=True):
        other._codebook.embed.data.copy_(level.codebook[None])
        other._codebook.embed_avg.data.copy_(level.sums[None])
    for step in range(10):
        z, theirs_z = vectors(step, count=16).requires_grad_(True), vectors(step, count=16).requires_grad_(True)
        ours, (out, codes, losses) = layer(z), theirs(flat(theirs_z))
        layer.settle()
        found = torch.stack([grid.flatten(1) - 16 * i for i, grid in enumerate(ours.codes.chunk(3, 1))], -1)
        assert torch.equal(found, codes)
        torch.testing.assert_close(flat(ours.z), out, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.commitment, losses.mean(), rtol=1e-4, atol=1e-6)
        ours.commitment.backward()
        losses.mean().backward()
        torch.testing.assert_close(z.grad, theirs_z.grad, rtol=1e-4, atol=1e-7)
    for level, other in zip(layer.levels, theirs.layers, strict=True):
        torch.testing.assert_close(level.codebook, other._codebook.embed[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("estimator", ["straight", "rotation"])
def test_a_mapped_codebook_equals_the_oracles(estimator: str):
    torch.manual_seed(0)
    layer = SimVQ(SimVQConfig(codes=CODES, dim=DIM, estimator=estimator)).train()
    theirs = oracle.SimVQ(dim=DIM, codebook_size=CODES, rotation_trick=estimator == "rotation").train()
    theirs.frozen_codebook.copy_(layer.frozen)
    theirs.code_transform.weight.data.copy_(layer.map.weight)
    z, theirs_z = vectors().requires_grad_(True), vectors().requires_grad_(True)
    ours, (out, codes, loss) = layer(z), theirs(flat(theirs_z))
    assert torch.equal(ours.codes.flatten(1), codes)
    torch.testing.assert_close(flat(ours.z), out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.own + 0.25 * ours.commitment, loss, rtol=1e-4, atol=1e-6)
    (ours.own + 0.25 * ours.commitment + ours.z.square().mean()).backward()
    (loss + out.square().mean()).backward()
    torch.testing.assert_close(z.grad, theirs_z.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(layer.map.weight.grad, theirs.code_transform.weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (3, 4), (16,), (7, 6, 5), (512,), (511, 3)])
def test_finite_scalars_equal_the_oracles(levels: tuple[int, ...]):
    layer, theirs = FSQ(FSQConfig(levels=levels)), oracle.FSQ(levels=list(levels))
    z, theirs_z = (4 * vectors(1, len(levels), 40) for _ in range(2))
    z.requires_grad_(True)
    theirs_z.requires_grad_(True)
    ours, (out, codes) = layer(z), theirs(flat(theirs_z))
    assert torch.equal(ours.codes.flatten(1), codes.long())
    torch.testing.assert_close(flat(ours.z), out)
    torch.testing.assert_close(layer.codewords(), theirs.implicit_codebook)
    ours.z.square().sum().backward()
    out.square().sum().backward()
    torch.testing.assert_close(z.grad, theirs_z.grad, rtol=1e-4, atol=1e-5)
    far = torch.cat([torch.full((1, len(levels), 1, 1), end) for end in (-50.0, 50.0)])
    assert layer.codes(far).flatten().tolist() == [0, layer.vocabulary - 1]  # every level can be reached


@pytest.mark.parametrize("spherical", [False, True])
def test_signs_and_their_entropies_equal_the_oracles(spherical: bool):
    bits = 6
    layer = LFQ(LFQConfig(bits=bits, entropy_weight=0.3, diversity=0.7, spherical=spherical)).train()
    theirs = oracle.LFQ(
        codebook_size=2**bits, dim=bits, entropy_loss_weight=0.3, diversity_gamma=0.7, commitment_loss_weight=0.25,
        spherical=spherical,
    ).train()  # fmt: skip
    z, theirs_z = (0.02 * vectors(1, bits, 10) for _ in range(2))  # small, so that the soft codes are not all but hard
    z.requires_grad_(True)
    theirs_z.requires_grad_(True)
    ours, (out, codes, loss) = layer(z), theirs(flat(theirs_z))
    weights = 2 ** torch.arange(bits)
    swapped = (codes[..., None] // 2 ** torch.arange(bits - 1, -1, -1) % 2 * weights).sum(-1)  # their first bit is ours
    assert torch.equal(ours.codes.flatten(1), swapped)
    torch.testing.assert_close(flat(ours.z), out, rtol=1e-4, atol=1e-5)
    total = ours.own + 0.25 * ours.commitment
    torch.testing.assert_close(total, loss.squeeze(), rtol=1e-4, atol=1e-5)
    total.backward()
    # Their logarithm is cut off at 1e-5, and with it their gradient: ours is that of all codes, listed in float64.
    wide = theirs_z.detach().double().requires_grad_(True)
    read = flat(wide).flatten(0, 1)
    read = torch.nn.functional.normalize(read, dim=-1) if spherical else read
    law = (-torch.cdist(read, layer.codewords().double()).square() / layer.config.temperature).softmax(-1)
    sure, varied = torch.special.entr(law).sum(-1).mean(), torch.special.entr(law.mean(0)).sum()
    signs = torch.where(read > 0, layer.size, -layer.size)
    listed = 0.3 * (sure - 0.7 * varied) + 0.25 * (read - signs).square().mean()
    listed.backward()
    torch.testing.assert_close(total.double(), listed, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(z.grad.double(), wide.grad, rtol=2e-3, atol=2e-5)


def test_codes_that_no_vector_comes_near_leave_the_slope_of_the_entropies_as_it_is():
    """Held to all codes listed in float64 by the logarithms of their probabilities, which do not run out of numbers."""
    layer = LFQ(LFQConfig(bits=8, entropy_weight=1.0)).train()
    z = 0.02 * vectors(1, 8, 10)
    z[:, :3] += 2.0  # three bits that are decided: most codes are out of reach
    z.requires_grad_(True)
    (found,) = torch.autograd.grad(layer(z).own, z)
    wide = z.detach().double().requires_grad_(True)
    read = flat(wide).flatten(0, 1)
    log_law = (-torch.cdist(read, layer.codewords().double()).square() / layer.config.temperature).log_softmax(-1)
    log_mean = log_law.logsumexp(0) - math.log(len(read))
    listed = -(log_law.exp() * log_law).sum(-1).mean() + (log_mean.exp() * log_mean).sum()
    (expected,) = torch.autograd.grad(listed, wide)
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-5)


def test_the_entropy_of_groups_is_that_of_all_bits_where_they_are_independent():
    """Vectors that hold every combination once: 6 bits of entropy, however they are grouped."""
    z = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=6)))[:, :, None, None]
    for group in (1, 2, 4, 6):
        layer = LFQ(LFQConfig(bits=6, group=group, entropy_weight=1.0)).train()
        assert layer(z).own.item() == pytest.approx(-6 * math.log(2), rel=1e-4)  # each vector is sure of its code


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.kind in ("vq", "residual")], ids=lambda c: c.kind)
def test_codebooks_start_from_the_data_and_revive(config: QuantizerConfig):
    torch.manual_seed(0)
    layer, g = quantizer_of(config).train(), generator(1)
    data = torch.randn(2000, DIM, generator=generator(2))
    layer.initialise(data, g)
    z = data[:, :, None, None]

    def error() -> float:
        read = torch.nn.functional.normalize(z, dim=1) if getattr(config, "distance", "") == "cosine" else z
        return (layer.lookup(layer.codes(z)) - read).square().mean().item()

    started = error()
    books = layer.levels if isinstance(layer, ResidualVQ) else [layer]
    with torch.no_grad():
        for book in books:
            book.cluster_size[: len(book.cluster_size) // 2] = 0
            book.codebook[: len(book.cluster_size) // 2] = book.codebook[0]
    damaged = error()
    moved = layer.revive(data, g)
    for (codebook_moved, rows), book in zip(moved, books, strict=True):
        assert codebook_moved is book.codebook and rows.tolist() == list(range(len(book.cluster_size) // 2))
    assert started < error() < damaged  # placed by k-means++, without the rounds that follow it at the start
    assert codebook(count_codes(layer.codes(z), layer.vocabulary)).usage > 0.95
    assert not layer.revive(data, g)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FSQConfig(levels=(8, 2)), r"levels is \(8, 2\), expected 3 to 512"),
        (lambda: FSQConfig(levels=(1024,)), r"levels is \(1024,\), expected 3 to 512"),
        (lambda: FSQConfig(levels=(512, 512, 512)), "134,217,728 codes, expected at most"),
        (lambda: LFQConfig(diversity=math.nan), "diversity nan"),
        (lambda: LFQConfig(bits=30), "bits is 30, expected 1 to 24"),
        (lambda: LFQConfig(group=20), "group is 20, expected 1 to 14"),
        (lambda: LFQConfig(temperature=0.0), r"temperature 0\.0, expected"),
        (lambda: ResidualConfig(depth=0), "depth is 0, expected at least 1"),
        (lambda: ResidualConfig(level=VQConfig(distance="cosine")), "has a length that counts"),
        (lambda: SimVQConfig(codes=1), "codes is 1, expected at least 2"),
    ],
)
def test_a_value_out_of_range_is_named_with_a_remedy(build, message: str):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("change", [{"diversity": 2.0}, {"temperature": 0.1}, {"group": 5}])
def test_settings_of_an_entropy_that_weighs_nothing_are_refused(change: dict):
    (name,) = change
    with pytest.raises(ValueError, match=rf"{name} is .* entropy_weight is 0.*Leave it out"):
        LFQConfig(entropy_weight=0.0, **change)
