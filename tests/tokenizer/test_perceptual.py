"""LPIPS against torchmetrics' on the same weights, the distance in a tower against cosines of hooked maps."""

import copy
import importlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from backbone.clip import ContrastiveConfig, contrastive_hash, save_contrastive
from tokenizer.perceptual import LPIPS, FeatureDistance, PerceptualConfig, directions

oracle = importlib.import_module("torchmetrics.functional.image.lpips")
models = importlib.import_module("torchvision.models")
HEADS = Path(oracle.__file__).parent / "lpips_models"  # the released linear heads
NAMES = {"vgg": "vgg16", "alex": "alexnet"}
SIZES = {"vocab_size": 16, "end_id": 1, "image_size": 32}
TOWERS = {
    "resnet": ContrastiveConfig(width=8, heads=8, **SIZES),
    "vit": ContrastiveConfig(layers=7, width=16, heads=2, **SIZES),
}


def pictures(count: int = 2, side: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=generator, dtype=torch.float64) * 2 - 1


def trunk_state(net: str) -> dict[str, Tensor]:
    """A random network as torchvision would save it, the classifier cut short."""
    with torch.device("meta"):
        shapes = getattr(models, NAMES[net])(weights=None).features.state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {"classifier.6.bias": torch.zeros(10)}
    for key, value in shapes.items():
        fan = value[0].numel() if value.ndim == 4 else 100
        state[f"features.{key}"] = torch.randn(value.shape, generator=generator) * (2 / fan) ** 0.5
    return state


@pytest.fixture(scope="module")
def trunks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("trunks")
    save_file(trunk_state("vgg"), folder / "vgg.safetensors")
    torch.save(trunk_state("alex"), folder / "alex.pth")
    return {"vgg": folder / "vgg.safetensors", "alex": folder / "alex.pth"}


@pytest.fixture(scope="module", params=["alex", "resnet", "vit"])
def distance(request: pytest.FixtureRequest, trunks: dict[str, Path]):
    if request.param == "alex":
        return LPIPS(trunks["alex"], HEADS / "alex.pth", "alex").double()
    return FeatureDistance(tower(request.param), "0" * 64).double()


def tower(kind: str) -> nn.Module:
    """A model whose batch norms and last convolutions are not what they are at the start."""
    model = TOWERS[kind].build(seed=0)
    generator = torch.Generator().manual_seed(1)
    for part in model.visual.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.weight.data.uniform_(0.5, 1.5, generator=generator)
            part.running_mean.normal_(0, 0.1, generator=generator)
    return model


def torchmetrics_lpips(net: str) -> nn.Module:
    """torchmetrics' LPIPS with the released heads on the random trunk of `trunk_state`."""
    with torch.device("meta"):
        theirs = oracle._LPIPS(pretrained=False, pnet_rand=True, net=net)
    state = {key.split(".", 1)[1]: value for key, value in trunk_state(net).items() if key.startswith("features")}
    heads = torch.load(HEADS / f"{net}.pth", map_location="cpu", weights_only=True)
    for key in theirs.state_dict():
        part, name = key.split(".", 1)
        if part == "net":
            heads[key] = state[name.split(".", 1)[1]]
        elif part == "lins":
            heads[key] = heads[f"lin{name}"]
    theirs.load_state_dict(heads, assign=True)
    return theirs


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_is_torchmetrics_on_the_same_weights(net: str, trunks: dict[str, Path]):
    theirs = torchmetrics_lpips(net).double()
    x_hat, x = pictures(3, 40, seed=1), pictures(3, 40, seed=2)
    ours = LPIPS(trunks[net], HEADS / f"{net}.pth", net).double()
    torch.testing.assert_close(ours(x_hat, x), theirs(x_hat, x).mean(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", TOWERS)
def test_the_distance_in_a_tower_is_two_minus_two_cosines_of_its_maps(kind: str):
    model = tower(kind).eval().double()
    visual, maps = model.visual, []
    if kind == "resnet":
        parts = [visual.avgpool, visual.layer1, visual.layer2, visual.layer3, visual.layer4]
    else:
        parts = [visual.transformer.resblocks[i] for i in (0, 2, 3, 4, 6)]
    for part in parts:
        part.register_forward_hook(lambda _part, _inputs, output: maps.append(output.detach().clone()))
    x_hat, x = pictures(seed=1), pictures(seed=2)
    visual(torch.cat([x_hat, x]))
    if kind == "vit":  # (B, 1 + positions, C), the class token first
        maps = [values[:, 1:].mT for values in maps]
    cosines = torch.stack([F.cosine_similarity(*values.chunk(2), dim=1).mean() for values in maps])
    distance = FeatureDistance(model, "0" * 64)
    maps_seen = len(maps)
    torch.testing.assert_close(distance(x_hat, x), (2 - 2 * cosines).mean())
    assert maps_seen == 5


def test_equal_pictures_are_at_no_distance_and_others_are(distance):
    x = pictures(seed=1)
    assert distance(x, x).item() == 0
    assert distance(x + 1e-3, x).item() > 0
    near, far = (distance(x + size * pictures(seed=2), x).item() for size in (0.01, 0.1))
    assert 0 < near < far


def test_the_distance_of_a_batch_is_the_mean_over_its_items(distance):
    x_hat, x = pictures(3, seed=1), pictures(3, seed=2)
    alone = torch.stack([distance(x_hat[i : i + 1], x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(distance(x_hat, x), alone.mean())


@pytest.mark.parametrize("side", [32, 40])
def test_gradient_is_that_of_finite_differences(distance, side: int):
    x_hat, x, direction = (pictures(1, side, seed=seed) for seed in (1, 2, 3))
    x_hat.requires_grad_(True)
    (gradient,) = torch.autograd.grad(distance(x_hat, x), x_hat)
    step = 1e-6
    with torch.no_grad():
        found = (distance(x_hat + step * direction, x) - distance(x_hat - step * direction, x)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), found, rtol=1e-5, atol=1e-8)


def test_only_the_first_picture_gets_a_gradient_and_the_network_stays_as_it_is(distance):
    before = {name: value.clone() for name, value in distance.state_dict().items()}
    x_hat, x = pictures(seed=1).requires_grad_(True), pictures(seed=2).requires_grad_(True)
    distance.train()
    assert not any(part.training for part in distance.modules())
    distance(x_hat, x).backward()
    assert x_hat.grad.abs().sum() > 0 and x.grad is None
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in distance.parameters())
    assert all(torch.equal(value, before[name]) for name, value in distance.state_dict().items())


def test_autocast_changes_nothing(distance):
    single = copy.deepcopy(distance).float()
    x_hat, x = pictures(seed=1).float(), pictures(seed=2).float()
    expected = distance(x_hat, x).float()  # in float64, which autocast leaves alone
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(single(x_hat, x), expected, rtol=1e-4, atol=0)
        assert single(x_hat.bfloat16(), x).dtype == torch.float32


def test_directions_have_unit_length_and_a_zero_vector_pulls_by_no_nan():
    values = torch.randn(2, 5, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values[0, :, 1, 1] = 0
    lengths = directions(values.requires_grad_(True)).square().sum(1)
    expected = torch.ones(2, 3, 3, dtype=torch.float64)
    expected[0, 1, 1] = 0
    torch.testing.assert_close(lengths, expected)
    assert torch.autograd.grad(lengths.sum(), values)[0].isfinite().all()


def test_pictures_of_another_size_are_resized_as_torchvision_does():
    resize = importlib.import_module("torchvision.transforms.functional").resize
    distance = FeatureDistance(tower("resnet"), "0" * 64).double()
    x_hat, x = pictures(2, 80, seed=1), pictures(2, 80, seed=2)
    expected = distance(resize(x_hat, [32, 32], antialias=True), resize(x, [32, 32], antialias=True))
    torch.testing.assert_close(distance(x_hat, x), expected)


def test_names_tell_the_distance_and_its_weights(trunks: dict[str, Path], tmp_path: Path):
    lpips = LPIPS(trunks["alex"], HEADS / "alex.pth", "alex")
    state = trunk_state("alex")
    state["features.0.bias"][0] += 1
    save_file(state, tmp_path / "other.safetensors")
    other = LPIPS(tmp_path / "other.safetensors", HEADS / "alex.pth", "alex")
    assert lpips.name == f"lpips[alex:{lpips.identity}]" and len(lpips.identity) == 12
    assert other.identity != lpips.identity
    save_contrastive(tmp_path / "clip", TOWERS["resnet"], TOWERS["resnet"].build(seed=0))
    ours = FeatureDistance.of(tmp_path / "clip")
    assert ours.name == f"featdist[indomain-openclip:{contrastive_hash(tmp_path / 'clip')[:12]}]"
    assert ours(pictures(seed=1), pictures(seed=2)).item() > 0


def test_files_of_something_else_are_refused_with_file_and_remedy(trunks: dict[str, Path], tmp_path: Path):
    heads = HEADS / "alex.pth"
    (tmp_path / "torn.safetensors").write_bytes(trunks["vgg"].read_bytes()[:1000])
    (tmp_path / "torn.pth").write_bytes(trunks["alex"].read_bytes()[:1000])
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "pickle.pth")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth.*Check trunk and heads"):
        LPIPS(tmp_path / "nowhere.pth", heads, "alex")
    for name in ("torn.safetensors", "torn.pth", "tensor.pth", "pickle.pth"):
        with pytest.raises(ValueError, match=name):
            LPIPS(tmp_path / name, heads, "alex")
    with pytest.raises(ValueError, match=r"vgg\.safetensors is not torchvision's state dict of alexnet.*change net"):
        LPIPS(trunks["vgg"], heads, "alex")
    with pytest.raises(
        ValueError, match=r"vgg\.pth is not the lpips package's linear heads for alex.*\(1, 192, 1, 1\)"
    ):
        LPIPS(trunks["alex"], HEADS / "vgg.pth", "alex")
    with pytest.raises(ValueError, match=r"alex\.pth is not torchvision's.*missing"):
        LPIPS(heads, trunks["alex"], "alex")


@pytest.mark.parametrize(("net", "smallest"), [("vgg", 16), ("alex", 31)])
def test_pictures_that_a_network_cannot_take_are_refused_and_the_next_size_is_not(net, smallest, trunks):
    lpips = LPIPS(trunks[net], HEADS / f"{net}.pth", net).double()
    assert lpips(pictures(1, smallest), pictures(1, smallest, seed=1)).isfinite()
    with pytest.raises(ValueError, match=f"{smallest - 1} x {smallest - 1}.*{smallest} pixels"):
        lpips(pictures(1, smallest - 1), pictures(1, smallest - 1, seed=1))


def test_a_tower_without_maps_is_refused():
    model = nn.Module()
    model.visual = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="Linear"):
        FeatureDistance(model, "0" * 64)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"trunk": "vgg.pth"}, "heads is empty"), ({"heads": "lin.pth"}, "trunk is empty"),
        ({"weight": -1.0}, "weight is -1"), ({"weight": float("nan")}, "weight is nan"),
    ],
)  # fmt: skip
def test_a_distance_that_cannot_be_is_refused(options: dict, match: str):
    with pytest.raises(ValueError, match=match):
        PerceptualConfig(**options)


@pytest.mark.parametrize(("change", "words"), [({"weight": 0.0}, "weight is 0.0"), ({"net": "alex"}, "net is 'alex'")])
def test_a_distance_that_weighs_nothing_and_a_network_without_weights_are_refused(change: dict, words: str):
    with pytest.raises(ValueError, match=rf"{words}.*leave"):
        PerceptualConfig(**change)
