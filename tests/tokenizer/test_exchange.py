"""Folders are read and written as diffusers does: parity on random weights, and refusals by name."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from safetensors.torch import load_file, save_file

from backbone.folded import FoldedConfig
from backbone.pyramid import PyramidConfig
from tokenizer.exchange import (
    ForeignFolderError,
    Scaling,
    read_vae,
    read_vqvae,
    write_vae,
    write_vqvae,
)
from tokenizer.quantize import FSQConfig, VQConfig
from tokenizer.vae import VAE, VAEConfig
from tokenizer.vqvae import VQVAE, VQVAEConfig

LEVELS = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
          "block_out_channels": (8, 8, 16), "norm_num_groups": 4, "layers_per_block": 1}  # fmt: skip
SMALL = PyramidConfig(channels=(8, 8, 16), groups=4, blocks=1)
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return module.eval()


def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.parametrize("attention", [True, False])
@torch.no_grad()
def test_a_vae_of_diffusers_gives_the_same_latents_and_pictures_here(tmp_path, projected, attention):
    theirs = shaken(AutoencoderKL(latent_channels=5, use_quant_conv=projected, use_post_quant_conv=projected,
                                  mid_block_add_attention=attention, **LEVELS))  # fmt: skip
    theirs.save_pretrained(tmp_path)
    ours, scaling = read_vae(tmp_path, VAEConfig())
    x = pictures()
    posterior, expected = ours.eval().encode(x), theirs.encode(x).latent_dist
    torch.testing.assert_close(posterior.mean, expected.mean, **CLOSE)
    torch.testing.assert_close(posterior.log_var, expected.logvar.clamp(-20, 10), **CLOSE)
    z = torch.randn(2, 5, 4, 6)
    torch.testing.assert_close(ours.decode(z), theirs.decode(z).sample, **CLOSE)
    assert scaling.std == pytest.approx((1 / 0.18215,) * 5) and scaling.mean == (0.0,) * 5
    assert ours.downsample == 4


@torch.no_grad()
def test_diffusers_reads_a_vae_of_ours(tmp_path):
    ours = shaken(VAE(VAEConfig(network=SMALL, latent_channels=3, variance="learned")))
    scaling = Scaling((0.5, 0.0, -1.0), (2.0, 4.0, 6.0))
    write_vae(ours, tmp_path, scaling, size=16)
    theirs, x = AutoencoderKL.from_pretrained(tmp_path).eval(), pictures()
    torch.testing.assert_close(theirs.encode(x).latent_dist.mean, ours.encode(x).mean, **CLOSE)
    config, latents = theirs.config, torch.randn(1, 3, 2, 2)
    std, mean = (torch.tensor(getattr(config, name)).view(1, -1, 1, 1) for name in ("latents_std", "latents_mean"))
    unscaled = latents * std / config.scaling_factor + mean  # as their pipelines do
    expected = [latents[0, i] * scaling.std[i] + scaling.mean[i] for i in range(3)]
    torch.testing.assert_close(unscaled[0], torch.stack(expected))
    assert config.scaling_factor == pytest.approx(0.25)  # what pipelines that know of one number read
    again, read = read_vae(tmp_path, VAEConfig(variance="learned"))
    assert read.mean == scaling.mean and read.std == pytest.approx(scaling.std)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in ours.state_dict().items()
               if name != "log_scale")  # fmt: skip


@pytest.mark.parametrize("dim", [None, 6])
@torch.no_grad()
def test_a_vq_model_of_diffusers_gives_the_same_codes_and_pictures_here(tmp_path, dim):
    theirs = shaken(VQModel(latent_channels=4, vq_embed_dim=dim, num_vq_embeddings=16, **LEVELS))
    theirs.save_pretrained(tmp_path)
    ours, x = read_vqvae(tmp_path, VQVAEConfig()).eval(), pictures()
    vectors = theirs.encode(x).latents
    torch.testing.assert_close(ours.encode(x), vectors, **CLOSE)
    expected = theirs.quantize(vectors)[2][2].view(2, 24)
    assert torch.equal(ours.codes(x), expected)
    torch.testing.assert_close(ours.decode_codes(expected, 16, 24), theirs.decode(vectors).sample, **CLOSE)


@pytest.mark.parametrize(("learn", "inner"), [("ema", None), ("gradient", 7)])
@torch.no_grad()
def test_diffusers_reads_a_vq_vae_of_ours(tmp_path, learn, inner):
    network = PyramidConfig(channels=(8, 8, 16), groups=4, blocks=1, inner=inner)
    quantizer = VQConfig(codes=16, dim=5, learn=learn)
    ours = shaken(VQVAE(VQVAEConfig(network=network, quantizer=quantizer)))
    write_vqvae(ours, tmp_path, size=16)
    theirs, x = VQModel.from_pretrained(tmp_path).eval(), pictures()
    torch.testing.assert_close(theirs(x).sample, ours.decode_codes(ours.codes(x), 16, 24), **CLOSE)


@torch.no_grad()
def test_weights_in_half_precision_are_read_as_float32_and_stay_finite_where_halves_overflow(tmp_path):
    theirs = shaken(AutoencoderKL(**LEVELS))
    theirs.decoder.conv_in.weight.mul_(2e4)  # its outputs pass 65,504
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    save_file({name: value.half() for name, value in state.items()},
              tmp_path / "diffusion_pytorch_model.fp16.safetensors")  # fmt: skip
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    ours, _ = read_vae(tmp_path, VAEConfig())
    z = torch.randn(1, 4, 4, 4) * 4
    assert ours.decode(z).isfinite().all() and all(p.dtype == torch.float32 for p in ours.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert ours.decode(z).isfinite().all()
    assert not ours.half().decoder(z.half()).isfinite().all()


@torch.no_grad()
def test_attention_under_its_older_names_is_the_same(tmp_path):
    AutoencoderKL(**LEVELS).save_pretrained(tmp_path)
    new, _ = read_vae(tmp_path, VAEConfig())
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(path)
    for newer, name in older.items():
        state = {key.replace(f"attentions.0.{newer}.", f"attentions.0.{name}."): value for key, value in state.items()}
    assert any("query" in key for key in state)
    save_file(state, path)
    old, _ = read_vae(tmp_path, VAEConfig())
    assert all(torch.equal(value, old.state_dict()[name]) for name, value in new.state_dict().items())


def changed(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "VQModel"}, "holds a VQModel, expected a AutoencoderKL"),
        ({"in_channels": 4}, "in_channels is 4, and only 3 is built"),
        ({"act_fn": "relu"}, "act_fn is 'relu'"),
        ({"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"]}, "only"),
        ({"use_quant_conv": False}, "one side of the latents only"),
        ({"block_out_channels": [8, 16, 16]}, "weights of another architecture"),
        ({"layers_per_block": 2}, "weights of another architecture .* missing"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, change, words):
    AutoencoderKL(**LEVELS).save_pretrained(tmp_path)
    changed(tmp_path, **change)
    with pytest.raises(ForeignFolderError, match=words):
        read_vae(tmp_path, VAEConfig())


def test_missing_and_damaged_files_are_named_with_a_remedy(tmp_path):
    with pytest.raises(ForeignFolderError, match=r"no config\.json: give the folder"):
        read_vae(tmp_path, VAEConfig())
    AutoencoderKL(**LEVELS).save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ForeignFolderError, match=r"damaged .* download it again"):
        read_vae(tmp_path, VAEConfig())
    path.unlink()
    with pytest.raises(ForeignFolderError, match=r"no diffusion_pytorch_model\.safetensors"):
        read_vae(tmp_path, VAEConfig())


def test_other_networks_and_quantisers_are_not_written(tmp_path):
    with pytest.raises(ForeignFolderError, match="kind 'folded', expected 'pyramid'"):
        write_vae(VAE(VAEConfig(network=FoldedConfig(channels=16))), tmp_path, Scaling((0.0,), (1.0,)), 16)
    with pytest.raises(ForeignFolderError, match="one Euclidean codebook"):
        write_vqvae(VQVAE(VQVAEConfig(network=SMALL, quantizer=FSQConfig())), tmp_path, 16)
