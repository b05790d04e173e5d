import pytest
import torch
from torch import Tensor

from discrete.guide import Condition, bind, classifier_free, conditional, hide
from discrete.predict import denoiser
from discrete.sample import confidence
from discrete.schedule import Linear
from tests.discrete.oracle import Joint

MASK = 4
TABLE = torch.randn(MASK + 1, MASK + 1, generator=torch.Generator().manual_seed(0))


class Network:
    """Logits of each position depend on the first token and on the time."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.batches.append(len(x_t))
        t = t.reshape(-1, 1, 1) if t.ndim else t
        return TABLE[x_t[:, :1]].expand(*x_t.shape, -1) + t * TABLE[0]


def condition(batch: int = 3) -> Condition:
    known = torch.tensor([True, False, False]).expand(batch, 3)
    return Condition((torch.arange(batch) % MASK)[:, None].expand(batch, 3), known)


@pytest.mark.parametrize("t", [torch.tensor(0.5), torch.tensor([0.1, 0.5, 0.9])])
def test_guidance_extrapolates_from_null_to_condition(t: Tensor):
    model, cond, x_t = conditional(Network()), condition(), torch.full((3, 3), MASK)
    null = hide(cond, MASK)
    c, u = bind(model, cond)(x_t, t), bind(model, null)(x_t, t)
    assert not torch.allclose(c, u)
    for scale in (0.0, 1.0, 2.5):
        torch.testing.assert_close(classifier_free(model, cond, null, scale)(x_t, t), u + scale * (c - u))


def test_both_branches_run_in_one_batch_and_scale_one_needs_no_second():
    network, cond = Network(), condition()
    x_t = torch.full((3, 3), MASK)
    classifier_free(conditional(network), cond, hide(cond, MASK), 2.0)(x_t, torch.tensor(1.0))
    classifier_free(conditional(network), cond, hide(cond, MASK), 1.0)(x_t, torch.tensor(1.0))
    assert network.batches == [6, 3]


def test_guidance_on_logits_is_guidance_on_log_probabilities():
    model, cond, x_t, t = conditional(Network()), condition(), torch.full((3, 3), MASK), torch.tensor(0.3)
    null = hide(cond, MASK)
    c, u = bind(model, cond)(x_t, t).log_softmax(-1), bind(model, null)(x_t, t).log_softmax(-1)
    guided = classifier_free(model, cond, null, 3.0)(x_t, t).log_softmax(-1)
    torch.testing.assert_close(guided, (u + 3 * (c - u)).log_softmax(-1))


def test_forbidden_tokens_stay_forbidden_and_never_become_nan():
    def model(x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return torch.where(torch.arange(MASK + 1) < 2, -torch.inf, conditional(Network())(x_t, t, cond))

    cond = condition()
    logits = classifier_free(model, cond, hide(cond, MASK), 2.0)(torch.full((3, 3), MASK), torch.tensor(1.0))
    assert torch.isneginf(logits[..., :2]).all() and torch.isfinite(logits[..., 2:]).all()


def test_the_condition_overwrites_and_the_null_hides_only_known_positions():
    cond, x_t = condition(2), torch.full((2, 3), 3)
    assert cond.write(x_t).tolist() == [[0, 3, 3], [1, 3, 3]]
    assert hide(cond, MASK).write(x_t).tolist() == [[MASK, 3, 3], [MASK, 3, 3]]


def test_a_guided_sample_keeps_its_condition_and_leans_towards_it():
    joint = Joint(vocab=4, length=2, sharpness=1.0)
    x = torch.full((4000, 2), MASK)
    x[:, 0] = 2
    known = x != MASK
    model = conditional(lambda x_t, t: joint(x_t))
    share = {}
    for scale in (1.0, 4.0):
        cond = Condition(x, known)
        logits = classifier_free(model, cond, hide(cond, MASK), scale)
        out = confidence(
            denoiser(logits, mask_id=MASK), Linear(), x, torch.tensor([1.0, 0.0]), mask_id=MASK,
            generator=torch.Generator().manual_seed(0), known=known,
        )  # fmt: skip
        assert (out[:, 0] == 2).all()
        lift = joint(x[:1])[0, 1] - joint(torch.full((1, 2), MASK))[0, 1]  # log p(x | c) / p(x)
        share[scale] = (out[:, 1] == lift[:MASK].argmax()).double().mean()
    assert share[4.0] > share[1.0] + 0.1
