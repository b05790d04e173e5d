from types import SimpleNamespace

import pytest
import torch

from discrete.layout import Layout
from discrete.loss import exact_count_weight
from discrete.model import MaskedTransformer, MaskedTransformerConfig
from discrete.task import TaskMix, corrupt, corrupt_evenly, corrupt_image, draw_tasks, losses

LAYOUT = Layout(text_length=5, text_vocab=11, sides=(3,), image_vocabs=(7,))
MASK = LAYOUT.mask_id


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs(batch: int = 40) -> torch.Tensor:
    g = generator(9)
    return LAYOUT.join(torch.randint(0, 11, (batch, 5), generator=g), torch.randint(0, 7, (batch, 9), generator=g))


def only(task: str, **rest: float) -> TaskMix:
    shares = dict.fromkeys(("text_to_image", "image_to_text", "joint", "hidden_text"), 0.0)
    return TaskMix(**{**shares, task: 1.0, **rest})


@pytest.mark.parametrize(
    ("task", "text_masked", "text_asked", "image_asked"),
    [
        ("text_to_image", "none", False, True),
        ("image_to_text", "some", True, False),
        ("joint", "some", True, True),
        ("hidden_text", "all", False, True),
    ],
)
def test_each_task_shows_hides_and_asks_what_it_should(task, text_masked, text_asked, image_asked):
    x = pairs()
    x_t, weight, _ = corrupt(x, LAYOUT, only(task), generator())
    masked = x_t == MASK
    text, image = masked[:, LAYOUT.text], masked[:, LAYOUT.image]
    assert {"none": not text.any(), "all": text.all(), "some": text.any(1).all()}[text_masked]
    assert image.any(1).all() if image_asked else not image.any()
    assert torch.equal(weight[:, LAYOUT.text] > 0, text & text_asked)
    assert torch.equal(weight[:, LAYOUT.image] > 0, image)
    assert torch.equal(x_t[~masked], x[~masked])


def test_text_to_image_meets_a_whole_caption_beside_an_image_of_masks_only():
    x_t, _, _ = corrupt(pairs(200), LAYOUT, only("text_to_image"), generator())
    masked = x_t == MASK
    assert (masked[:, LAYOUT.image].all(1) & ~masked[:, LAYOUT.text].any(1)).any()


def test_every_batch_keeps_the_shares():
    mix = TaskMix()
    counts = torch.stack([torch.bincount(draw_tasks(mix, 20, generator(i)), minlength=4) for i in range(100)])
    expected = 20 * torch.tensor(mix.shares()) / sum(mix.shares())
    assert ((counts - expected).abs() <= 1.001).all()
    assert ((counts.double().mean(0) - expected).abs() < 0.15).all()


def test_weights_of_text_are_the_bound_per_token_and_of_images_one_per_token():
    x = pairs()
    text = corrupt_evenly(x[:, LAYOUT.text], mask_id=MASK, generator=generator())
    masked = text.x_t == MASK
    torch.testing.assert_close(
        text.weight * 5, (masked * exact_count_weight(masked)[:, None]).double(), check_dtype=False
    )
    image = corrupt_image(x[:, LAYOUT.image], mask_id=MASK, generator=generator())
    assert set(image.weight.unique().tolist()) == {0.0, 1 / 9}


def test_the_bound_of_images_is_exact_for_a_model_of_independent_codes():
    """Where every code is drawn on its own from p, the bound equals -ln p of the whole image, whatever is masked."""
    log_p = torch.tensor([0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05], dtype=torch.float64).log()

    class Independent(torch.nn.Module):
        def forward(self, x_t, t):
            n = len(x_t)
            return SimpleNamespace(text=torch.zeros(n, 5, 11), image=log_p.expand(n, 9, 7))

    x = pairs(20_000)
    exact = -log_p[x[:, LAYOUT.image] - LAYOUT.text_vocab].mean()
    found = {}
    for weighting in ("bound", "maskgit"):
        mix = only("text_to_image", text_alone=0.0, image_weighting=weighting)
        found[weighting] = float(losses(Independent(), x, LAYOUT, mix, generator()).image)
    assert found["bound"] == pytest.approx(float(exact), rel=0.01)
    share = corrupt_image(x[:, LAYOUT.image], mask_id=MASK, generator=generator()).t.mean()  # that is masked
    assert found["maskgit"] == pytest.approx(float(exact * share), rel=0.01) and share < 0.72


def test_images_are_mostly_masked():
    _, _, t = corrupt_image(torch.zeros(4000, 64, dtype=torch.long), mask_id=7, generator=generator())
    assert t.double().mean() == pytest.approx(2 / torch.pi, abs=0.02)  # the mean of cos(pi/2 u)


def test_only_asked_tokens_move_the_loss():
    class Fake(torch.nn.Module):
        def forward(self, x_t, t):
            shape = (*x_t.shape[:1], 5, 11)
            return SimpleNamespace(text=torch.full(shape, torch.nan), image=torch.zeros(len(x_t), 9, 7))

    mix = only("text_to_image", text_alone=0.0)
    total, image, text, alone = losses(Fake(), pairs(), LAYOUT, mix, generator())
    assert torch.isfinite(total) and text == 0 and alone == 0
    weight = corrupt(pairs(), LAYOUT, mix, generator()).weight
    assert image.item() == pytest.approx(weight.sum(1).mean().item() * torch.tensor(7.0).log().item(), rel=1e-5)


def test_the_losses_are_weighted_as_the_mix_says_and_text_alone_can_be_left_out():
    model = MaskedTransformer(MaskedTransformerConfig(dim=16, layers=1, heads=2), LAYOUT)
    loss = losses(model, pairs(), LAYOUT, TaskMix(text_weight=0.25, text_alone_weight=2.0), generator())
    torch.testing.assert_close(loss.total, loss.image + 0.25 * loss.text + 2 * loss.text_alone)
    without = losses(model, pairs(), LAYOUT, TaskMix(text_weight=0.25, text_alone=0), generator())
    torch.testing.assert_close(without.total, without.image + 0.25 * without.text)


def test_a_few_steps_learn_a_rule_between_the_spans():
    # every code of the image is the first text token modulo 7
    torch.manual_seed(0)
    model = MaskedTransformer(MaskedTransformerConfig(dim=32, layers=2, heads=2), LAYOUT)
    optimiser, g = torch.optim.Adam(model.parameters(), 3e-3), generator()
    for _ in range(120):
        text = torch.randint(0, 7, (32, 5), generator=g)
        x = LAYOUT.join(text, text[:, :1].expand(32, 9))
        loss = losses(model, x, LAYOUT, TaskMix(), g)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    x = LAYOUT.join(torch.arange(7)[:, None].expand(7, 5), None)
    assert torch.equal(model(x).image.argmax(-1), torch.arange(7)[:, None].expand(7, 9))


def test_a_share_below_zero_and_a_mix_of_nothing_are_refused():
    with pytest.raises(ValueError, match=r"tasks.joint is -0.1"):
        TaskMix(joint=-0.1)
    with pytest.raises(ValueError, match="all task shares are 0"):
        TaskMix(text_to_image=0, image_to_text=0, joint=0, hidden_text=0)


def test_texts_without_pictures_are_read_beside_the_captions_and_count_alike():
    torch.manual_seed(0)
    network = MaskedTransformer(MaskedTransformerConfig(dim=16, text_layers=1, layers=1, heads=2), LAYOUT)
    x, texts, seen = pairs(8), torch.randint(0, 11, (5, 5), generator=generator(3)), []

    def watched(x_t, t):
        seen.append(x_t)
        return network(x_t, t)

    mix = TaskMix(text_alone=0.5, text_alone_weight=0.3)
    found = losses(watched, x, LAYOUT, mix, generator(1), texts)
    assert seen[1].shape == (4 + 5, 5)
    shown = seen[1] != MASK
    assert torch.equal(seen[1][shown], torch.cat([x[:4, LAYOUT.text], texts])[shown])
    without = losses(network, x, LAYOUT, mix, generator(1))
    assert torch.equal(found.image, without.image) and found.text_alone != without.text_alone
    only_texts = losses(network, x, LAYOUT, TaskMix(text_alone=0.0), generator(1), texts)
    assert (
        only_texts.text_alone > 0 and losses(network, x, LAYOUT, TaskMix(text_alone=0.0), generator(1)).text_alone == 0
    )
