"""Banks that can be counted through, and heaps of latents whose captions a trained network has to know."""

import math

import pytest
import torch

from latent.classifier import MatchConfig, NoisyMatch, contrastive_loss, top_one
from latent.grid import karras
from latent.guide import classifier
from latent.predict import Estimate, corrupt
from latent.sample import heun
from latent.schedule import EDM, VP, Flow
from tests.latent.oracle import SCHEDULES, double, generator, name, randn

SIZES = dict(channels=2, patch=2, dim=16, layers=2, heads=2, cond_dim=16, pooled_width=6, embed_dim=8)
BANK = 5
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


def captions(count=BANK, seed=7):
    return randn(count, 6, seed=seed)


def match(schedule=None, bank=None, trained=True):
    """A network with random weights everywhere, so that time and position matter; for `Flow` unless told."""
    schedule, bank = schedule or Flow(), captions() if bank is None else bank
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = NoisyMatch(MatchConfig(**SIZES, bank=len(bank)), schedule).double()
        if trained:
            for parameter in made.parameters():
                if parameter.ndim:
                    torch.nn.init.normal_(parameter, std=0.3)
    made.bank.copy_(bank)
    return made.requires_grad_(False)


def latents(batch=3, seed=0):
    return randn(batch, 2, 4, 4, seed=seed)


@pytest.mark.parametrize("t", double(0.999, 0.5, 0.01))
@every_schedule
def test_probabilities_sum_to_one_over_the_bank(schedule, t):
    network, x_t = match(schedule), schedule.sigma(t) * latents()
    total = sum(network.log_prob(x_t, t, caption.expand(3, -1)).exp() for caption in network.bank)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_log_prob_is_the_softmax_over_the_bank_that_unit_vectors_and_scale_give():
    network, x_t, t = match(), latents(), double(0.4)[0]
    logits = network.scale() * network.image(x_t, t) @ network.text(network.bank).T  # (3, K)
    wanted = logits.log_softmax(1)[torch.arange(3), torch.tensor([4, 0, 2])]
    torch.testing.assert_close(network.log_prob(x_t, t, network.bank[[4, 0, 2]]), wanted)
    for vectors in (network.image(x_t, t), network.text(network.bank)):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors), dtype=torch.float64))


def test_a_caption_of_the_bank_is_known_again_after_rounding():
    """Cached embeddings are rounded to half precision, those of a prompt are not."""
    network, x_t, t = match(), latents(BANK), double(0.4)[0]
    exact = network.log_prob(x_t, t, network.bank)
    torch.testing.assert_close(network.log_prob(x_t, t, network.bank.half()), exact, rtol=5e-3, atol=5e-3)


def test_a_new_caption_is_weighed_against_the_whole_bank():
    network, x_t, t = match(), latents(1), double(0.4)[0]
    new = captions(1, seed=8)
    together = match(bank=torch.cat([network.bank, new]))
    torch.testing.assert_close(network.log_prob(x_t, t, new), together.log_prob(x_t, t, new))


def test_the_gradient_is_the_slope_of_log_prob():
    network, t = match(VP()), double(0.4)[0]
    x_t = latents().requires_grad_()
    (slope,) = torch.autograd.grad(network.log_prob(x_t, t, captions()[:3]).sum(), x_t)
    way, step = latents(seed=1), 1e-2  # norms are computed in single precision
    ahead, behind = (network.log_prob(x_t.detach() + sign * step * way, t, captions()[:3]) for sign in (1, -1))
    found = (slope * way).flatten(1).sum(1)
    assert (found.abs() > 1e-3).all()
    torch.testing.assert_close(found, (ahead - behind) / (2 * step), rtol=1e-2, atol=1e-4)


@every_schedule
def test_an_item_does_not_depend_on_its_batch(schedule):
    network, x_t, pooled, t = match(schedule), latents(4), captions()[:4], double(0.1, 0.3, 0.6, 0.9)
    together = network.log_prob(x_t, t, pooled)
    alone = torch.cat([network.log_prob(x_t[i : i + 1], t[i], pooled[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)


def test_the_answer_depends_on_the_time_and_on_where_things_stand():
    network, x_t, pooled = match(), latents(), captions()[:3]
    found = network.log_prob(x_t, double(0.3)[0], pooled)
    for other in (network.log_prob(x_t, double(0.6)[0], pooled), network.log_prob(x_t.flip(3), double(0.3)[0], pooled)):
        assert (found - other).abs().min() > 1e-3


@every_schedule
def test_paths_agree_where_signal_and_noise_do(schedule):
    """The caption of x_t is a matter of its noise-to-signal ratio alone, whatever x_t is multiplied by."""
    t, pooled = double(0.3)[0], captions()[:3]
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x_t = corrupt(schedule, latents(), latents(seed=1), t)
    same = sigma / (alpha + sigma)  # of the straight path
    found, wanted = match(schedule).log_prob(x_t, t, pooled), match().log_prob(x_t / (alpha + sigma), same, pooled)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def features(seed=0):
    """What a network makes of a batch of six, in which three captions stand once, twice and three times."""
    pooled = captions(3)[[0, 1, 1, 2, 2, 2]]
    return dict(x=latents(6, seed), pooled=pooled, t=torch.linspace(0.1, 0.9, 6).double(), eps=latents(6, seed + 1))


def test_the_loss_is_the_cross_entropy_to_all_items_of_the_same_caption():
    batch, network = features(), match()
    image = network.image(corrupt(Flow(), batch["x"], batch["eps"], batch["t"]), batch["t"])
    p = (network.scale() * image @ network.text(batch["pooled"]).T).double()
    groups = [0, 1, 1, 2, 2, 2]
    loss = 0.0
    for logs in (p.log_softmax(1), p.T.log_softmax(1)):
        for i, own in enumerate(groups):
            equal = [j for j, other in enumerate(groups) if other == own]
            loss -= sum(logs[i, j].item() for j in equal) / len(equal) / len(groups) / 2
    assert contrastive_loss(network, Flow(), **batch).item() == pytest.approx(loss, rel=1e-5)


def test_loss_and_accuracy_do_not_depend_on_the_order_of_the_batch():
    batch, network, order = features(), match(), torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = {key: value[order] for key, value in batch.items()}
    for measure in (contrastive_loss, top_one):
        torch.testing.assert_close(measure(network, Flow(), **batch), measure(network, Flow(), **shuffled))


def test_equal_captions_are_no_mistake_of_each_other():
    """One direction per caption: all items that say the same fit best, whichever of them is found first."""
    corners = torch.eye(3)[[0, 1, 1, 2, 2, 2]]
    batch = features()

    def perfect(x_t, t, pooled):
        return corners, corners, torch.tensor(100.0)

    assert top_one(perfect, Flow(), **batch).item() == 1
    entropy = (1 * math.log(1) + 2 * math.log(2) + 3 * math.log(3)) / 6  # of the even target, no less can be had
    assert contrastive_loss(perfect, Flow(), **batch).item() == pytest.approx(entropy, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(bank=1), "bank is 1, expected at least 2 captions"),
        (dict(dim=18), "dim is 18, expected a positive multiple of 4 x its heads = 8"),
        (dict(layers=0), "layers is 0, expected at least 1"),
    ],
)
def test_impossible_sizes_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        MatchConfig(**{**SIZES, **changes})


PROMPTS = captions(2, seed=3)
SPREAD = 0.3


def trained(schedule, draw, bank, steps):
    """A network that has learned which caption of the bank the latents of draw(step) -> (x, which) belong to."""
    network = match(schedule, bank, trained=False).requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for step in range(steps):
        x, which = draw(step)
        t = torch.rand(len(x), generator=generator(step), dtype=torch.float64)
        t = t**4 if schedule.kind == "edm" else t  # where sigma grows with t there is little signal at most times
        loss = contrastive_loss(network, schedule, x, bank[which], t, randn(*x.shape, seed=1000 + step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.requires_grad_(False)


def test_a_small_set_is_learned_by_heart():
    x, bank, t, eps = latents(BANK), captions(), double(0.1)[0], latents(BANK, seed=1)
    network = trained(Flow(), lambda step: (x, torch.arange(BANK)), bank, steps=80)
    assert top_one(network, Flow(), x, bank, t, eps).item() == 1
    found = network.log_prob(corrupt(Flow(), x, eps, t), t, bank)
    assert found.min() > math.log(0.8)
    assert network.log_prob(corrupt(Flow(), x, eps, t), t, bank.roll(1, 0)).max() < math.log(0.2)


def two_heaps(step):
    """Latents around +1 and around -1 in every coordinate, and which of the two it is."""
    which = torch.arange(32) % 2
    return (1 - 2.0 * which).double()[:, None, None, None] + SPREAD * randn(32, 2, 4, 4, seed=step), which


def heaps_denoiser(schedule):
    """E[x | x_t] of both heaps together: each one's own, weighed by how likely it is."""

    def denoise(x_t, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        variance = (alpha * SPREAD) ** 2 + sigma**2
        likely = torch.sigmoid(2 * alpha * x_t.flatten(1).sum(1) / variance)[:, None, None, None]
        centre = 2 * likely - 1
        x = centre + alpha * SPREAD**2 / variance * (x_t - alpha * centre)
        return Estimate(x, (x_t - alpha * x) / sigma)

    return denoise


@pytest.mark.parametrize("schedule", [Flow(), VP(), EDM(sigma_max=20.0)], ids=name)
def test_a_trained_classifier_raises_the_share_of_samples_that_match(schedule):
    network = trained(schedule, two_heaps, PROMPTS, steps=100)
    times = karras(schedule, 12, sigma_max=10.0)
    start = schedule.sigma(times[0]) * latents(60, seed=5)

    def share(scale, wanted):
        def log_prob(x_t, t):
            return network.log_prob(x_t, t, PROMPTS[wanted].expand(len(x_t), -1))

        samples = heun(classifier(heaps_denoiser(schedule), schedule, log_prob, scale), schedule, start, times)
        matching = (samples.mean((1, 2, 3)) > 0) == (wanted == 0)
        return matching.double().mean().item()

    for wanted in (0, 1):
        none, one, more = (share(scale, wanted) for scale in (0.0, 1.0, 3.0))
        assert 0.3 < none < 0.7
        assert one > none + 0.1
        assert more > 0.9
