"""The Inception graph against torch-fidelity's and torchvision's with the same random weights."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backbone.clip import cure_torchvision
from eval.inception import SIZE, Inception, load_inception
from eval.resize import scaled

cure_torchvision()


def random_weights(variant):
    """Weights with lively statistics, so that every norm matters."""
    torch.manual_seed(0)
    weights = Inception(variant).state_dict()
    for name, value in weights.items():
        if name.endswith(("running_mean", "bn.bias")):
            value.normal_(0, 0.1)
        elif name.endswith(("running_var", "bn.weight")):
            value.uniform_(0.8, 1.2)
        elif name.endswith("conv.weight"):
            value.normal_(0, (2 / value[0].numel()) ** 0.5)
    return weights


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "pt_inception-2015-12-05.pth"
    torch.save(random_weights("2015-12-05"), path)
    return path


def test_features_equal_those_of_torch_fidelity_from_a_file_of_the_published_layout(published):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    images = np.random.default_rng(0).integers(0, 256, (4, 64, 48, 3), dtype=np.uint8)
    theirs = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(published))
    (expected,) = theirs(torch.from_numpy(images).permute(0, 3, 1, 2))
    with torch.inference_mode():
        found = load_inception(published, "2015-12-05")(scaled(images, SIZE, "tf1"))
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_other_variant_equals_torchvision(tmp_path):
    from torchvision.models import inception_v3

    theirs = inception_v3(weights=None, init_weights=False, aux_logits=True).eval()
    theirs.load_state_dict({**theirs.state_dict(), **random_weights("torchvision")})
    theirs.fc = torch.nn.Identity()
    save_file({**theirs.state_dict(), **random_weights("torchvision")}, tmp_path / "inception.safetensors")
    x = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    with torch.inference_mode():
        found = load_inception(tmp_path / "inception.safetensors", "torchvision")(x)
        torch.testing.assert_close(found, theirs(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found, load_other(tmp_path)(x), rtol=1e-2)


def load_other(folder):
    """The same weights in the graph of the other variant, whose last layer has another width."""
    weights = random_weights("torchvision")
    weights["fc.weight"], weights["fc.bias"] = torch.zeros(1008, 2048), torch.zeros(1008)
    torch.save(weights, folder / "other.pth")
    return load_inception(folder / "other.pth", "2015-12-05")


def test_files_that_hold_something_else_are_refused_with_a_name(published, tmp_path):
    with pytest.raises(ValueError, match=r"has \(1008,\) for fc\.bias, expected \(1000,\)"):
        load_inception(published, "torchvision")
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="has nothing for Conv2d_1a_3x3"):
        load_inception(tmp_path / "a.pth", "2015-12-05")
    torch.save({"model": {"a": torch.zeros(2)}}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="something else than a table of tensors"):
        load_inception(tmp_path / "b.pth", "2015-12-05")
    (tmp_path / "c.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="no file of plain tensors"):
        load_inception(tmp_path / "c.pth", "2015-12-05")


class Evil:
    """What runs a command where it is unpickled."""

    def __reduce__(self):
        return print, ("run",)


def test_nothing_is_unpickled_but_tensors(tmp_path, capsys):
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="no file of plain tensors"):
        load_inception(tmp_path / "evil.pth", "2015-12-05")
    assert capsys.readouterr().out == ""
