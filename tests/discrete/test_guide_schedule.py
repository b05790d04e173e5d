import pytest
import torch
from torch import Tensor

from discrete.guide import Condition, autoguidance, bind, classifier_free, conditional, hide

MASK, WIDTH = 4, 3
TABLE = torch.randn(MASK + 1, MASK + 1, generator=torch.Generator().manual_seed(0))
TIMES = [torch.tensor(0.1), torch.tensor(0.5), torch.tensor(1.0), torch.tensor([0.1, 0.5, 0.95])]
X = torch.full((3, WIDTH), MASK)


class Network:
    """Logits depend on the first token and on the time."""

    def __init__(self, shift: float = 0.0) -> None:
        self.shift, self.calls = shift, []

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.calls.append(len(x_t))
        t = t.reshape(-1, 1, 1) if t.ndim else t
        return TABLE[x_t[:, :1]].expand(*x_t.shape, -1) + (t + self.shift) * TABLE[0] ** 2


def condition() -> Condition:
    return Condition(torch.arange(3)[:, None].expand(3, WIDTH), torch.tensor([True, False, False]).expand(3, WIDTH))


def branches(t: Tensor) -> tuple[Tensor, Tensor]:
    model, cond = conditional(Network()), condition()
    return bind(model, cond)(X, t), bind(model, hide(cond, MASK))(X, t)


def guided(scale, t: Tensor, network: Network | None = None, **options) -> Tensor:
    cond = condition()
    return classifier_free(conditional(network or Network()), cond, hide(cond, MASK), scale, **options)(X, t)


def column(value: Tensor) -> Tensor:
    return value.reshape(-1, 1, 1)


@pytest.mark.parametrize("t", TIMES)
def test_a_scale_may_be_a_function_of_time(t: Tensor):
    c, u = branches(t)
    torch.testing.assert_close(guided(lambda t: 1 + 3 * t, t), u + column(1 + 3 * t) * (c - u))
    torch.testing.assert_close(guided(lambda t: 2.5, t), guided(2.5, t))
    torch.testing.assert_close(guided(lambda t: torch.tensor(2.5), t), guided(2.5, t))
    assert not torch.allclose(guided(lambda t: 1 + 3 * t, t), c)


@pytest.mark.parametrize("scale", [0.0, 2.5, lambda t: 3 - t, lambda t: (3 - t).double()])
@pytest.mark.parametrize("t", TIMES)
def test_outside_its_interval_guidance_leaves_the_conditional_model(t: Tensor, scale):
    c, u = branches(t)
    strength = scale(t).float() if callable(scale) else torch.tensor(scale)
    inside = (t >= 0.4) & (t <= 0.9)
    expected = torch.where(column(inside), u + column(strength) * (c - u), c)
    found = guided(scale, t, interval=(0.4, 0.9))
    torch.testing.assert_close(found, expected)
    assert found.dtype == c.dtype


@pytest.mark.parametrize("t", [0.25, 0.75])
def test_the_ends_of_an_interval_are_guided(t: float):
    c, u = branches(torch.tensor(t))
    torch.testing.assert_close(guided(3.0, torch.tensor(t), interval=(0.25, 0.75)), u + 3 * (c - u))


def test_the_second_branch_is_computed_only_where_some_item_needs_it():
    for t, rows in ((0.1, [3]), (0.5, [6]), ([0.1, 0.2, 0.95], [3]), ([0.1, 0.5, 0.95], [6])):
        network = Network()
        guided(2.0, torch.tensor(t), network, interval=(0.4, 0.9))
        assert network.calls == rows
    network = Network()
    guided(1.0, torch.tensor(0.5), network, interval=(0.4, 0.9))
    assert network.calls == [3]


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("scale", [0.0, 0.3, 2.5, lambda t: 1 + t])
def test_autoguidance_extrapolates_from_the_weak_model_to_the_main_one(t: Tensor, scale):
    main, weak = Network(), Network(shift=2.0)
    m, w = main(X, t), weak(X, t)
    strength = scale(t) if callable(scale) else torch.tensor(scale)
    torch.testing.assert_close(autoguidance(main, weak, scale)(X, t), w + column(strength) * (m - w))
    inside = column((t >= 0.3) & (t <= 0.6))
    expected = torch.where(inside, w + column(strength) * (m - w), m)
    torch.testing.assert_close(autoguidance(main, weak, scale, interval=(0.3, 0.6))(X, t), expected)


def test_autoguidance_of_scale_one_or_outside_its_interval_never_asks_the_weak_model():
    weak = Network()
    autoguidance(Network(), weak, 1.0)(X, torch.tensor(0.5))
    autoguidance(Network(), weak, 3.0, interval=(0.6, 1.0))(X, torch.tensor(0.5))
    assert weak.calls == []


def test_what_the_main_model_forbids_stays_forbidden_whatever_the_weak_one_says():
    main = torch.tensor([[[-torch.inf, -torch.inf, 1.0]]])
    weak = torch.tensor([[[-torch.inf, 2.0, 0.0]]])
    for scale in (0.0, 0.4, 3.0, lambda t: 3.0):
        found = autoguidance(lambda x, t: main, lambda x, t: weak, scale)(X, torch.tensor(0.5))
        assert torch.isneginf(found[..., :2]).all() and torch.isfinite(found[..., 2]).all()


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.9, 0.1), (-0.1, 0.5), (0.5, 1.1)])
def test_intervals_that_are_none_are_named(interval: tuple[float, float]):
    for build in (lambda: autoguidance(Network(), Network(), 2.0, interval=interval),
                  lambda: guided(1.0, torch.tensor(0.5), interval=interval)):  # fmt: skip
        with pytest.raises(ValueError, match=rf"guidance interval \({interval[0]}, {interval[1]}\)"):
            build()
