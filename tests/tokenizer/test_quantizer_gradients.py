"""Gradients through cosine codebooks, and through the rotation trick, against vector-quantize-pytorch."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests.tokenizer.test_quantizers import CODES, DIM, flat, oracle, vectors
from tokenizer.quantize import ResidualConfig, ResidualVQ, VectorQuantizer, VQConfig


class Directions(nn.Module):
    """Rows of unit length."""

    def forward(self, rows: Tensor) -> Tensor:
        return nn.functional.normalize(rows, dim=-1)


@pytest.mark.parametrize("estimator", ["straight", "rotation"])
def test_ten_steps_of_a_cosine_codebook_by_gradient_equal_the_oracles_on_directions(estimator: str):
    """The library has none; but nearest by cosine is nearest by distance among unit vectors, as its own become here."""
    torch.manual_seed(0)
    config = VQConfig(codes=CODES, dim=DIM, learn="gradient", distance="cosine", estimator=estimator)
    layer = VectorQuantizer(config).train()
    with torch.no_grad():  # lengths that must not matter, but scale the gradient
        layer.codebook *= torch.linspace(0.5, 2, CODES)[:, None]
    theirs = oracle.VectorQuantize(
        dim=DIM, codebook_size=CODES, learnable_codebook=True, ema_update=False,
        rotation_trick=estimator == "rotation", threshold_ema_dead_code=0,
    ).train()  # fmt: skip
    theirs._codebook.embed.data.copy_(layer.codebook[None])
    parametrize.register_parametrization(theirs._codebook, "embed", Directions())
    optimisers = [torch.optim.SGD(one.parameters(), 1.0) for one in (layer, theirs)]
    for step in range(10):
        z, theirs_z = vectors(step, count=16).requires_grad_(True), vectors(step, count=16).requires_grad_(True)
        weight = vectors(50 + step, count=16)
        ours, (out, codes, loss) = layer(z), theirs(nn.functional.normalize(flat(theirs_z), dim=-1))
        assert torch.equal(ours.codes.flatten(1), codes)
        torch.testing.assert_close(flat(ours.z), out, rtol=1e-4, atol=1e-5)
        (ours.own + ours.commitment + (ours.z * weight).mean()).backward()
        (loss.squeeze() + (out * flat(weight)).mean()).backward()
        torch.testing.assert_close(z.grad, theirs_z.grad, rtol=1e-4, atol=1e-6)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
    torch.testing.assert_close(layer.codewords(), theirs._codebook.embed[0], rtol=1e-4, atol=1e-5)


def test_the_rotation_trick_of_moving_averages_equals_the_oracles():
    torch.manual_seed(0)
    layer = VectorQuantizer(VQConfig(codes=CODES, dim=DIM, decay=0.9, estimator="rotation")).train()
    theirs = oracle.VectorQuantize(
        dim=DIM, codebook_size=CODES, decay=0.9, rotation_trick=True, threshold_ema_dead_code=0
    ).train()
    theirs._codebook.embed.data.copy_(layer.codebook[None])
    theirs._codebook.embed_avg.data.copy_(layer.sums[None])
    for step in range(10):
        z, theirs_z = vectors(step, count=16).requires_grad_(True), vectors(step, count=16).requires_grad_(True)
        weight = vectors(50 + step, count=16)
        ours, (out, codes, loss) = layer(z), theirs(flat(theirs_z))
        layer.settle()
        assert torch.equal(ours.codes.flatten(1), codes)
        torch.testing.assert_close(flat(ours.z), out, rtol=1e-4, atol=1e-5)
        (ours.commitment + (ours.z * weight).mean()).backward()
        (loss.squeeze() + (out * flat(weight)).mean()).backward()
        torch.testing.assert_close(z.grad, theirs_z.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(layer.codebook, theirs._codebook.embed[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 3])
def test_the_rotation_trick_of_residual_codebooks_turns_the_vector_into_the_oracles_sum(depth: int):
    """The library turns what each level is given, and adds those gradients up: the same for one level alone."""
    from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

    torch.manual_seed(0)
    layer = ResidualVQ(ResidualConfig(depth=depth, level=VQConfig(codes=16, dim=DIM, estimator="rotation"))).train()
    theirs = oracle.ResidualVQ(
        dim=DIM, num_quantizers=depth, codebook_size=16, decay=0.98, rotation_trick=True, threshold_ema_dead_code=0
    ).train()
    for level, other in zip(layer.levels, theirs.layers, strict=True):
        other._codebook.embed.data.copy_(level.codebook[None])
        other._codebook.embed_avg.data.copy_(level.sums[None])
    for step in range(3):
        z, theirs_z = vectors(step, count=16).requires_grad_(True), vectors(step, count=16).requires_grad_(True)
        weight = vectors(50 + step, count=16)
        ours, (out, codes, losses) = layer(z), theirs(flat(theirs_z))
        layer.settle()
        found = torch.stack([grid.flatten(1) - 16 * i for i, grid in enumerate(ours.codes.chunk(depth, 1))], -1)
        assert torch.equal(found, codes)
        torch.testing.assert_close(flat(ours.z), out, rtol=1e-4, atol=1e-5)
        turned = out if depth == 1 else rotate_to(flat(theirs_z), out.detach())
        (ours.commitment + (ours.z * weight).mean()).backward()
        (losses.mean() + (turned * flat(weight)).mean()).backward()
        torch.testing.assert_close(z.grad, theirs_z.grad, rtol=1e-4, atol=1e-6)
