import copy

import pytest
import torch
from torch import Tensor, nn

from tokenizer.discriminator import Critic, CriticConfig, PatchCritic, SpectralConv

KINDS = ["hinge", "non_saturating", "wasserstein"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, side: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=generator(seed), dtype=torch.float64) * 2 - 1


def critic(**options) -> Critic:
    torch.manual_seed(0)
    return Critic(CriticConfig(**{"channels": 8, "layers": 1, **options})).double()


def all_terms(kind: str, spectral: bool = False) -> Critic:
    built = critic(kind=kind, spectral=spectral, penalty=2.0, lecam=0.3, lecam_decay=0.5)
    built.averages.copy_(torch.tensor([0.3, -0.2]))
    return built


@pytest.mark.parametrize(("layers", "sees"), [(1, 16), (2, 34), (3, 70)])
@pytest.mark.parametrize("spectral", [True, False])
def test_a_logit_sees_the_patch_that_its_layers_make(layers: int, sees: int, spectral: bool):
    """Norms by groups would let it see the whole picture a little: they are taken out for the measurement."""
    critic = PatchCritic(CriticConfig(channels=8, layers=layers, spectral=spectral)).double()
    critic.net = nn.Sequential(*(part for part in critic.net if not isinstance(part, nn.GroupNorm)))
    x = pictures(1, 128).requires_grad_(True)
    logits = critic(x)
    assert logits.shape == (1, 128 // 2**layers - 2, 128 // 2**layers - 2)
    middle = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, middle, middle], x)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    assert len(rows) == rows[-1] - rows[0] + 1 == sees


@pytest.mark.parametrize("spectral", [True, False])
def test_an_items_logits_do_not_depend_on_its_batch(spectral: bool):
    critic, x = PatchCritic(CriticConfig(channels=8, spectral=spectral)).double(), pictures(4)
    torch.testing.assert_close(critic(x)[1:2], critic(x[1:2]))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_pictures_without_a_logit_are_refused_and_the_next_size_is_not(layers: int):
    critic, smallest = PatchCritic(CriticConfig(channels=8, layers=layers)), 3 * 2**layers
    assert critic(torch.zeros(1, 3, smallest, smallest + 1)).shape[1:] == (1, 1)
    with pytest.raises(ValueError, match=f"{smallest - 1} x {smallest}.*Lower layers"):
        critic(torch.zeros(1, 3, smallest - 1, smallest))


def test_each_critic_has_one_kind_of_norm():
    def parts(kind: type[nn.Module], spectral: bool) -> int:
        return sum(isinstance(part, kind) for part in PatchCritic(CriticConfig(layers=3, spectral=spectral)).net)

    assert (parts(SpectralConv, True), parts(nn.GroupNorm, True)) == (5, 0)
    assert (parts(SpectralConv, False), parts(nn.GroupNorm, False)) == (0, 3)


def test_spectral_norms_reach_one_and_are_kept_up_by_a_round_for_each_step():
    torch.manual_seed(0)
    layer = SpectralConv(8, 16, 1).double()
    layer.iterate(500)
    assert torch.linalg.matrix_norm(layer.normalised().flatten(1), 2).item() == pytest.approx(1, abs=1e-9)
    with torch.no_grad():
        layer.weight.mul_(7)
    assert torch.linalg.matrix_norm(layer.normalised().flatten(1), 2).item() == pytest.approx(1, abs=1e-9)


def test_spectral_norm_has_the_gradient_of_the_paper():
    """d/dW <G, W / sigma> = (G - <G, W / sigma> u v^T) / sigma (arXiv:1802.05957, eq. 12)."""
    layer = SpectralConv(3, 4, 1).double()
    layer.iterate(500)
    weight = layer.weight.detach().flatten(1)
    u, sigmas, vh = torch.linalg.svd(weight)
    cotangent = torch.randn(4, 48, generator=generator(0), dtype=torch.float64)
    (found,) = torch.autograd.grad((layer.normalised().flatten(1) * cotangent).sum(), layer.weight)
    pull = (cotangent * weight / sigmas[0]).sum()
    torch.testing.assert_close(found.flatten(1), (cotangent - pull * torch.outer(u[:, 0], vh[0])) / sigmas[0])


def test_only_settling_moves_spectral_vectors():
    built = critic(spectral=True)
    with torch.no_grad():
        for layer in built.net.net.children():
            if isinstance(layer, SpectralConv):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator(1)))
    before = {name: value.clone() for name, value in built.named_buffers()}
    built(pictures(2), pictures(2, seed=1), generator(0))
    assert all(torch.equal(value, before[name]) for name, value in built.named_buffers())
    built.settle()
    vectors = {name for name, value in built.named_buffers() if "critic" in name and value.numel() > 1}
    assert not any(torch.equal(value, before[name]) for name, value in built.named_buffers() if name in vectors)
    for _ in range(500):
        built.settle()
    for layer in built.net.net.children():
        if isinstance(layer, SpectralConv):
            assert torch.linalg.matrix_norm(layer.normalised().flatten(1), 2).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spectral", [True, False])
def test_judging_reaches_the_pictures_and_changes_nothing_of_the_critic(kind: str, spectral: bool):
    built, fake = all_terms(kind, spectral), pictures(2).requires_grad_(True)
    before = copy.deepcopy(built.state_dict()), built.pending.clone()
    built.judge(fake).backward()
    assert fake.grad is not None and fake.grad.abs().sum((1, 2, 3)).all()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in built.parameters())
    assert all(torch.equal(value, before[0][name]) for name, value in built.state_dict().items())
    assert torch.equal(built.pending, before[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_against_judges_gradient_makes_pictures_look_more_real(kind: str):
    built, fake = all_terms(kind), pictures(2).requires_grad_(True)
    (gradient,) = torch.autograd.grad(built.judge(fake), fake)
    assert built.net(fake - 1e-2 * gradient / gradient.norm()).mean() > built.net(fake).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_the_critics_loss_reaches_its_parameters_and_no_producer_of_pictures(kind: str):
    built = all_terms(kind)
    real, fake = pictures(2).requires_grad_(True), pictures(2, seed=1).requires_grad_(True)
    loss = built(real, 1.0 * fake, generator(0))
    torch.testing.assert_close(loss.total, loss.real + loss.fake + 2.0 * loss.penalty + 0.3 * loss.lecam)
    loss.total.backward()
    assert real.grad is None and fake.grad is None
    assert all(parameter.grad is not None for parameter in built.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spectral", [True, False])
def test_micro_batches_average_to_the_batch_and_move_the_averages_once(kind: str, spectral: bool):
    real, fake = pictures(8, seed=1), pictures(8, seed=2)
    whole, parts = all_terms(kind, spectral), all_terms(kind, spectral)
    whole(real, fake, [generator(i) for i in range(8)]).total.backward()
    whole.settle()
    for rows in (slice(0, 4), slice(4, 8)):
        generators = [generator(i) for i in range(8)][rows]
        (parts(real[rows], fake[rows], generators).total / 2).backward()
        assert torch.equal(parts.averages, torch.tensor([0.3, -0.2]))
    parts.settle()
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(whole.averages, parts.averages)
    assert not parts.pending.any()


def test_settling_moves_the_averages_to_the_mean_logits_by_the_decay():
    built, real, fake = all_terms("hinge"), pictures(3, seed=1), pictures(3, seed=2)
    means = torch.stack([built.net(x).mean() for x in (real, fake)]).detach()
    expected = 0.5 * torch.tensor([0.3, -0.2]).double() + 0.5 * means
    built(real, fake, generator(0))
    built.settle()
    torch.testing.assert_close(built.averages.double(), expected, rtol=1e-6, atol=1e-6)
    built.eval()(real, fake, generator(0))
    assert not built.pending.any()  # validation leaves no trace
    built.settle()
    torch.testing.assert_close(built.averages.double(), expected, rtol=1e-6, atol=1e-6)


def test_the_averages_of_ranks_of_unequal_share_are_those_of_one_process(monkeypatch):
    real, fake = pictures(4, seed=1), pictures(4, seed=2)
    alone, ranks = all_terms("hinge"), [all_terms("hinge") for _ in range(2)]
    alone(real, fake, generator(0))
    alone.settle()
    for rank, rows in zip(ranks, (slice(0, 3), slice(3, 4)), strict=True):
        rank(real[rows], fake[rows], generator(0))
    total = ranks[0].pending + ranks[1].pending
    monkeypatch.setattr("tokenizer.discriminator.summed", lambda values: values.copy_(total))  # what all_reduce does
    for rank in ranks:
        rank.settle()
        torch.testing.assert_close(rank.averages, alone.averages)


def test_a_batch_that_blew_up_does_not_reach_the_averages():
    built = all_terms("hinge")
    built(pictures(2), pictures(2) * torch.inf, generator(0))
    built.settle()
    torch.testing.assert_close(built.averages[1].item(), -0.2, atol=1e-6, rtol=0)
    assert built.averages.isfinite().all() and not built.pending.any()


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_r1_is_taken_at_real_pictures(kind: str):
    built, real, fake = all_terms(kind), pictures(2, seed=1), pictures(2, seed=2)
    x = real.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(built.net(x).mean((1, 2)).sum(), x)
    torch.testing.assert_close(built(real, fake, generator(0)).penalty, slope.square().sum() / 4)


def test_the_penalty_draws_one_number_for_each_item_and_only_where_it_needs_one():
    used, untouched = generator(0), generator(0)
    critic(kind="wasserstein")(pictures(3), pictures(3, seed=1), used)
    torch.rand(3, generator=untouched, dtype=torch.float64)
    assert torch.equal(used.get_state(), untouched.get_state())
    critic(kind="non_saturating", penalty=1.0)(pictures(3), pictures(3, seed=1), used)
    assert torch.equal(used.get_state(), untouched.get_state())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spectral", [True, False])
def test_losses_and_penalties_stay_float32_under_autocast(kind: str, spectral: bool):
    built = all_terms(kind, spectral).float()
    real, fake = pictures(2).float(), pictures(2, seed=1).float()
    expected = built(real, fake, generator(0))
    with torch.autocast("cpu", torch.bfloat16):
        loss = built(real, fake, generator(0))
    loss.total.backward()
    assert {term.dtype for term in loss} == {torch.float32}
    assert torch.equal(loss.penalty, expected.penalty)
    torch.testing.assert_close(loss.total, expected.total, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spectral", [True, False])
def test_a_critic_learns_to_tell_stripes_from_columns(kind: str, spectral: bool):
    """Both have the same colours; only their direction differs."""
    built = critic(kind=kind, spectral=spectral, lecam=0.01 if kind == "hinge" else 0.0).float()
    optimizer = torch.optim.Adam(built.parameters(), lr=1e-2, betas=(0.5, 0.99))

    def stripes(seed: int) -> Tensor:
        rows = torch.rand(16, 3, 16, 1, generator=generator(seed)) * 2 - 1
        return rows.expand(16, 3, 16, 16).contiguous()

    for step in range(50):
        loss = built(stripes(2 * step), stripes(2 * step + 1).mT, generator(step))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        built.settle()
    real, fake = built.net(stripes(1000)).mean((1, 2)), built.net(stripes(1001).mT).mean((1, 2))
    assert real.min() > fake.max()


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 12}, {"channels": 0}, {"layers": 0}, {"penalty": -1.0}, {"penalty": float("nan")},
        {"lecam": -0.1}, {"lecam": float("inf")}, {"lecam_decay": 1.0},
    ],
)  # fmt: skip
def test_a_critic_that_cannot_be_is_refused(options: dict):
    with pytest.raises(ValueError, match=next(iter(options))):
        CriticConfig(**options)


def test_the_usual_penalty_is_that_of_the_kind():
    weights = {kind: CriticConfig(kind=kind).penalty_weight for kind in KINDS}
    assert weights == {"hinge": 0, "non_saturating": 0, "wasserstein": 10}
    assert CriticConfig(kind="wasserstein", penalty=0.0).penalty_weight == 0


def test_a_decay_of_averages_that_nobody_keeps_is_refused():
    with pytest.raises(ValueError, match=r"lecam_decay is 0.9, but lecam is 0.*leave it out"):
        CriticConfig(lecam_decay=0.9)
