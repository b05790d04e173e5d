"""Both sides of the benchmark of autoencoders are the same size, learn the same loss and read the same pictures."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from pipelines.data.decode import image_and_caption
from pipelines.data.scenes import write
from pipelines.data.shards import open_split
from pipelines.data.stream import Stream
from scripts.bench import autoencoders
from scripts.bench.codec_rivals import WIDE, Place, Shape, codec, configs, their_vae, their_vqvae
from scripts.bench.codec_runs import Job, Ledger, Pictures, Trainer, some_of, steps_of
from scripts.bench.rivals import count
from tests.conftest import ROOT
from tokenizer.loss import codebook_terms, vqvae_loss
from tokenizer.vae import VAE
from tokenizer.vqvae import VQVAE

SMALL = Shape(channels=16, widths=(32, 32, 32), codes=16)
JOB = Job(
    name="scenes", size=16, kind="vae", side="ours", shape=SMALL, rate=3e-3, seed=0, steps=12, batch=4, bf16=False,
    judged="test",
)  # fmt: skip
ALL = [(kind, side) for kind in ("vae", "vqvae") for side in ("ours", "theirs")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("sets")
    write(out / "scenes", count=26, size=16, seed=0)
    return out


@pytest.fixture(scope="module")
def place(folder):
    return Place(folder=folder / "scenes", size=16)


@pytest.mark.parametrize("shape", [Shape(), WIDE])
def test_both_sides_have_the_same_size_within_five_per_cent(shape):
    vae, vqvae = configs(shape)
    with torch.device("meta"):
        assert count(VAE(vae)) == pytest.approx(count(their_vae(shape, vae)), rel=0.05)
        theirs = their_vqvae(shape, vqvae)
        ours = count(VQVAE(vqvae)) + vqvae.quantizer.codes * vqvae.quantizer.dim  # a buffer that learns by averages
        assert ours == pytest.approx(count(theirs), rel=0.05)


def test_both_sides_have_latents_and_codes_of_one_shape(place):
    vae, vqvae = configs(SMALL)
    x = torch.zeros(2, 3, 16, 16)
    assert VAE(vae).encode(x).mean.shape == their_vae(SMALL, vae).encode(x).latent_dist.mean.shape
    theirs = their_vqvae(SMALL, vqvae)
    assert VQVAE(vqvae).encode(x).shape == theirs.encode(x).latents.shape
    assert theirs.quantize.embedding.weight.shape == VQVAE(vqvae).quantizer.codewords().shape


def test_the_loss_of_their_vqvae_is_ours_of_the_same_vectors(place):
    """Eq. 3 of arXiv:1711.00937, written with our terms on what their quantiser found."""
    model = codec("vqvae", "theirs", SMALL, place, JOB.training, 0)
    x, config = Pictures.read(place, "train").at(slice(4)), configs(SMALL)[1]
    vectors = model.network.encode(x).latents
    x_hat, codes = model.rebuild(x)
    codewords = model.network.quantize.embedding(codes).view(4, 4, 4, -1).permute(0, 3, 1, 2)
    expected = vqvae_loss(x_hat, x, *codebook_terms(vectors, codewords), kind=config.reconstruction, beta=config.beta)
    found = model.loss(x, torch.Generator())
    torch.testing.assert_close(found, expected.total)
    parameters = list(model.network.parameters())  # which term beta weighs shows in the gradients alone
    for one, other in zip(*(torch.autograd.grad(loss, parameters) for loss in (found, expected.total)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert expected.own > 0


def test_the_loss_of_their_vae_has_the_divergence_that_they_compute(place):
    model = codec("vae", "theirs", SMALL, place, JOB.training, 0)
    x, config = Pictures.read(place, "train").at(slice(4)), configs(SMALL)[0]
    posterior = model.network.encode(x).latent_dist
    assert isinstance(posterior, DiagonalGaussianDistribution)
    z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(3))
    difference = model.network.decode(z).sample - x
    expected = difference.abs().mean() + 2 * difference.square().mean()
    expected = expected + config.weight * posterior.kl().mean() / posterior.mean[0].numel()
    torch.testing.assert_close(model.loss(x, torch.Generator().manual_seed(3)), expected)


def test_batches_are_those_of_the_stream_in_every_epoch(place):
    stream = Stream(split=open_split(place.folder, "train"), seed=5, batch=4, decode=image_and_caption(16)).batches()
    pictures = Pictures.read(place, "train")
    for step in range(14):  # of 26 pictures: an epoch ends within a batch, and between two
        torch.testing.assert_close(pictures.batch(step, 4, 5), next(stream)[0]["image"])


@pytest.mark.parametrize(("kind", "side"), ALL)
def test_both_sides_learn_and_rebuild_pictures(kind, side, place):
    training = replace(JOB, kind=kind, side=side).training
    model, pictures = codec(kind, side, SMALL, place, training, 0), some_of(Pictures.read(place, "train"))
    losses = [run() for run in steps_of(model, training, pictures, 0)]
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])
    x_hat, codes = model.rebuild(pictures.at(slice(2)))
    assert x_hat.shape == (2, 3, 16, 16)
    assert (codes is None) == (kind == "vae")


def test_finished_trainings_are_read_back_and_not_repeated(folder, tmp_path, monkeypatch):
    path, jobs = tmp_path / "results" / "found.jsonl", [JOB, replace(JOB, kind="vqvae", steps=2)]
    Trainer(ledger=Ledger(path=path), folder=folder).finish(jobs[:1])
    again = Trainer(ledger=Ledger(path=path), folder=folder)
    again.finish(jobs)
    held_out = len(Pictures.read(Place(folder=folder / "scenes", size=16), "test"))
    assert [len(result.psnr) for result in again.ledger.known.values()] == [held_out, held_out]
    assert again.ledger.known[jobs[1]].usage > 0
    monkeypatch.setattr(Trainer, "train", lambda *_: pytest.fail("trained again"))
    last = Trainer(ledger=Ledger(path=path), folder=folder)
    last.finish(jobs)
    assert last.ledger.known == again.ledger.known


def test_without_diffusers_one_sentence_says_how_to_install_it():
    code = "import sys; sys.modules['diffusers'] = None; import scripts.bench.autoencoders"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().count("\n") == 0
    assert "pip install" in done.stderr


def test_the_rivals_are_built_in_a_process_that_has_imported_nothing_else():
    code = "from scripts.bench.codec_rivals import *; print(type(their_vqvae(Shape(), configs(Shape())[1])).__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "VQModel\n"), done.stderr


def test_without_data_the_options_say_what_to_give():
    with pytest.raises(ValueError, match="--data is missing"):
        autoencoders.Options()
