"""Own pictures through finished autoencoders: whole or tile by tile, of any size, and what is said of them."""

import json
import math
import re

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from torch import nn

from backbone.folded import FoldedConfig
from pipelines.cli import application
from pipelines.errors import PalimpsestError
from pipelines.models import load_vae, load_vqvae
from pipelines.reconstruct import Tiles, padded, reconstruct, reconstruct_files, tiled_numbers
from pipelines.runs import open_run
from pipelines.stages import run_stage
from tests.tokenizer.test_exchange import LEVELS, shaken
from tokenizer.hierarchy import TopConfig
from tokenizer.prior import RealNVPConfig
from tokenizer.quantize import ResidualConfig, VQConfig
from tokenizer.vae import VAE, VAEConfig
from tokenizer.vqvae import VQVAE, VQVAEConfig

NETWORK = FoldedConfig(factor=4, channels=16, encoder_blocks=0, decoder_blocks=0)
TILES = Tiles(size=64, overlap=48)


def local(model: nn.Module) -> nn.Module:
    """The same network without norms over the picture, so that it sees a few positions only."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    return shaken(model)


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def two_levels() -> VQVAE:
    level = VQConfig(codes=8, dim=3)
    top = TopConfig(quantizer=ResidualConfig(depth=2, level=level), channels=16, blocks=0)
    torch.manual_seed(0)
    return VQVAE(VQVAEConfig(network=NETWORK, quantizer=level, top=top, initial_vectors=64))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two pretrained autoencoders and no training."""
    out = tmp_path_factory.mktemp("reconstruct")
    shaken(AutoencoderKL(latent_channels=4, **LEVELS)).save_pretrained(out / "kl")
    shaken(VQModel(latent_channels=4, vq_embed_dim=6, num_vq_embeddings=16, **LEVELS)).save_pretrained(out / "vq")
    stages = {
        "bpe": {"kind": "bpe", "vocab_size": 300},
        "vae": {"kind": "vae", "pretrained": str(out / "kl")},
        "vqvae": {"kind": "vqvae", "pretrained": str(out / "vq")},
    }
    recipe = {"name": "tiny", "data": {"kind": "scenes", "size": 16, "count": 40}, "stage": stages}
    (out / "tiny.json").write_text(json.dumps({"recipe": recipe}))
    opened = open_run(out / "tiny.json", out=out, data=None)
    for name in stages:
        run_stage(opened, name)
    return opened


def saved(path, height: int, width: int, seed: int = 0):
    """A smooth random picture in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.mark.parametrize("size", [(64, 64), (148, 52), (97, 118)])
def test_tiles_of_a_local_vae_give_what_one_pass_gives(size):
    model, x = local(VAE(VAEConfig(network=NETWORK))), picture(*size)
    whole = reconstruct(model, x, Tiles(size=512))
    tiled = reconstruct(model, x, TILES)
    assert whole[0].shape == x.shape
    torch.testing.assert_close(tiled[0], whole[0], rtol=1e-4, atol=1e-4)
    assert tiled[1] == pytest.approx(whole[1], rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (238, 52), (131, 190)])
def test_tiles_of_a_local_vqvae_of_two_levels_give_its_own_codes(size):
    model, x, tiles = local(two_levels()), picture(*size), Tiles(size=128, overlap=88)  # half of it is what codes see
    large = padded(x, 8)
    numbers = tiled_numbers(model, large, tiles)
    assert torch.equal(numbers, model.codes(large)) and len(numbers.unique()) > 12
    height, width = large.shape[-2:]
    expected = model.decode_codes(model.codes(large), height, width)[..., : size[0], : size[1]]
    found, bits = reconstruct(model, x, tiles)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert bits == 3 * (2 * height * width // 64 + height * width // 16)  # 3 bits a code, two grids above


@torch.no_grad()
def test_norms_over_a_tile_change_the_picture_but_leave_no_seam():
    """Where tiles meet, the error to one pass jumps no more than it does elsewhere: blending hides the cuts."""
    torch.manual_seed(0)
    model, x = VAE(VAEConfig(network=NETWORK)).eval(), picture(64, 256)
    x[..., 128:] *= 0.3  # tiles whose statistics differ
    error = reconstruct(model, x, Tiles(size=64, overlap=32))[0] - reconstruct(model, x, Tiles(size=512))[0]
    cut = reconstruct(model, x, Tiles(size=64, overlap=0))[0] - reconstruct(model, x, Tiles(size=512))[0]
    assert error.abs().max() > 1e-3

    def seam(error: torch.Tensor, columns: list[int]) -> float:
        jumps = error.diff(dim=-1).abs().mean((0, 1, 2))
        return float(jumps[[column - 1 for column in columns]].mean() / jumps.mean())

    assert seam(cut, [64, 128, 192]) > 1.4
    assert seam(error, [32, 64, 96, 128, 160, 192, 224]) < 1.1


def test_a_padded_picture_is_continued_by_its_last_pixels_and_a_fitting_one_is_left():
    x = picture(5, 8)
    large = padded(x, 4)
    assert large.shape == (1, 3, 8, 8) and torch.equal(large[..., :5, :], x)
    assert torch.equal(large[..., 5:, :], x[..., 4:, :].expand(-1, -1, 3, -1))
    assert torch.equal(padded(x[..., :4, :], 4), x[..., :4, :])


def test_bits_of_a_vae_are_its_kl_to_the_prior_that_it_was_trained_by():
    x = picture(24, 16)
    model = shaken(VAE(VAEConfig(network=NETWORK, prior=RealNVPConfig(layers=2, channels=8))))
    posterior = model.encode(x)
    normal = torch.distributions.Normal(posterior.mean, (posterior.log_var / 2).exp())
    torch.manual_seed(0)
    draws = normal.sample((4000,))[:, 0]
    with torch.no_grad():
        terms = normal.log_prob(draws).flatten(1).sum(1) - model.prior.log_prob(draws)
    found = [reconstruct(model, x, TILES, torch.Generator().manual_seed(i))[1] * math.log(2) for i in range(200)]
    error = 4 * (torch.tensor(found).std() / 200**0.5 + terms.std() / 4000**0.5)
    assert abs(np.mean(found) - float(terms.mean())) < error
    plain = shaken(VAE(VAEConfig(network=NETWORK)))
    q = plain.encode(x)
    law = torch.distributions.Normal(q.mean, (q.log_var / 2).exp())
    kl = torch.distributions.kl_divergence(law, torch.distributions.Normal(0.0, 1.0)).sum()
    assert reconstruct(plain, x, TILES)[1] == pytest.approx(float(kl.detach()) / math.log(2), rel=1e-4)


@pytest.mark.parametrize("name", ["vae", "vqvae"])
def test_files_of_any_size_come_back_in_their_own_and_the_line_tells_the_truth(run, tmp_path, name):
    paths = [saved(tmp_path / "a" / "x.png", 17, 23), saved(tmp_path / "b" / "x.png", 90, 41, 1)]
    out = tmp_path / "out"
    done = reconstruct_files(run, name, paths, out, tiles=Tiles(size=32, overlap=16))
    assert not done.problems and sorted(path.name for path in out.iterdir()) == ["x-2.png", "x.png"]
    for path, target, line, tiles in zip(paths, (out / "x.png", out / "x-2.png"), done.lines, (1, 10), strict=True):
        before, after = np.asarray(Image.open(path)), np.asarray(Image.open(target))
        assert before.shape == after.shape
        said = re.search(r": (\d+) x (\d+), PSNR ([\d.]+) dB, ([\d.]+) bits per pixel, (\d+) tile", line)
        assert said and line.startswith(str(target))
        assert (int(said[1]), int(said[2]), int(said[5])) == (*before.shape[1::-1], tiles)
        assert float(said[3]) == pytest.approx(peak_signal_noise_ratio(before, after), abs=0.006)
        if name == "vqvae":
            codes = math.ceil(before.shape[0] / 4) * math.ceil(before.shape[1] / 4)
            assert float(said[4]) == pytest.approx(4 * codes / before[..., 0].size, abs=1e-4)


def test_a_fitting_picture_no_larger_than_a_tile_is_the_model_s_plain_pass(run, tmp_path):
    path = saved(tmp_path / "x.png", 32, 24)
    x = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None].float() / 127.5 - 1
    vae, vqvae = load_vae(run, "vae"), load_vqvae(run, "vqvae")
    expected = {"vae": vae.decode(vae.encode(x).mean), "vqvae": vqvae(x).x_hat}
    for name, x_hat in expected.items():
        reconstruct_files(run, name, [path], tmp_path / name, tiles=Tiles(size=32, overlap=8))
        found = np.asarray(Image.open(tmp_path / name / "x.png")).astype(float)
        wanted = (x_hat[0].permute(1, 2, 0).clamp(-1, 1) * 127.5 + 127.5).numpy()
        assert np.abs(found - wanted).max() <= 0.5 + 1e-3


def test_means_repeat_and_draws_are_those_of_the_seed_and_the_number(run, tmp_path):
    paths = [saved(tmp_path / "x.png", 20, 20), saved(tmp_path / "y.png", 20, 20)]  # twice the same picture

    def pictures(folder: str, draws: int | None) -> list[bytes]:
        reconstruct_files(run, None, paths, tmp_path / folder, tiles=Tiles(), draws=draws)
        return [(tmp_path / folder / f"{name}.png").read_bytes() for name in "xy"]

    mean, one = pictures("mean", None), pictures("one", 1)
    assert mean == pictures("again", None) and mean[0] == mean[1]
    assert one == pictures("same", 1) and one[0] != one[1]
    assert all(drawn not in (*mean, *pictures("two", 2)) for drawn in one)


def test_the_verb_writes_what_it_can_and_names_what_is_no_picture(run, tmp_path, capsys):
    good = saved(tmp_path / "good.png", 16, 16)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:-40])
    names = ["text.png", "cut.png", "missing.png", "good.png"]
    args = ["reconstruct", str(run.folder), *(str(tmp_path / name) for name in names)]
    with pytest.raises(PalimpsestError) as raised:
        application().cli(args=[*args, "--model", "vqvae", "--out", str(tmp_path / "out")])
    sentences = str(raised.value).split("\n")
    assert [next(name for name in names if name in sentence) for sentence in sentences] == names[:3]
    assert "PSNR" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]


def test_what_cannot_be_is_refused_before_anything_is_written(run, tmp_path):
    path, out = saved(tmp_path / "x.png", 16, 16), tmp_path / "out"
    for name, tiles, draws, error, words in (
        ("bpe", Tiles(), None, PalimpsestError, "of kind 'bpe', expected vae or vqvae: name one of vae,"),
        ("nobody", Tiles(), None, PalimpsestError, "no stage 'nobody'"),
        ("vqvae", Tiles(), 0, PalimpsestError, "no posterior"),
        ("vae", Tiles(size=30), None, ValueError, "tile is 30"),
        ("vae", Tiles(size=0, overlap=0), None, ValueError, r"tile is 0 pixels.* above 0\. Use 256"),
        ("vae", Tiles(size=32, overlap=32), None, ValueError, "overlap is 32"),
    ):
        with pytest.raises(error, match=words):
            reconstruct_files(run, name, [path], out, tiles=tiles, draws=draws)
    with pytest.raises(PalimpsestError, match="No picture is given"):
        reconstruct_files(run, "vae", [], out, tiles=Tiles())
    assert not out.exists()
    with pytest.raises(PalimpsestError, match="would be overwritten"):
        reconstruct_files(run, "vae", [path], tmp_path, tiles=Tiles())
