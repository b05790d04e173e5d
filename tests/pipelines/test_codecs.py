"""Every quantiser as a stage of a recipe: trained, judged in the report, and read by a masked model."""

import json
import logging
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from eval.blocks import Gallery
from eval.figure import Figure
from pipelines.codec_measures import autoencoders, worst_shown
from pipelines.data.decode import image_and_caption
from pipelines.data.stream import once
from pipelines.hardware import step_generator
from pipelines.judging import Judges
from pipelines.masked_sampler import MaskedSampler
from pipelines.measures import Evaluation, read_set
from pipelines.models import load_vae, load_vqvae
from pipelines.posterior_measures import TERMS, held_out_latents
from pipelines.runs import open_run
from pipelines.sampling import generators
from pipelines.sampling_options import Settings
from pipelines.stage_one import VAETask, VQVAETask
from pipelines.stages import run_stage

pytestmark = pytest.mark.slow
TRAINING = {"steps": 12, "batch": 8, "learning_rate": 3e-3, "compile": False, "bf16": False, "validate_every": 6}
TOWERS = {"width": 32, "text_width": 32, "layers": 1, "text_layers": 1, "embed_dim": 16}
CODEC = {"network": {"channels": 16, "encoder_blocks": 1, "decoder_blocks": 1}}
QUANTIZERS = {
    "residual": {"kind": "residual", "depth": 2, "level": {"codes": 12, "dim": 4}},
    "vq": {"kind": "vq", "codes": 32, "dim": 4},
    "turned": {"kind": "vq", "codes": 32, "dim": 4, "distance": "cosine", "learn": "gradient", "estimator": "rotation"},
    "sim": {"kind": "sim", "codes": 32, "dim": 4},
    "fsq": {"kind": "fsq", "levels": [4, 3, 3]},
    "lfq": {"kind": "lfq", "bits": 5},
}
TOP = {"quantizer": {"kind": "vq", "codes": 10, "dim": 3}, "channels": 16, "blocks": 1}
TWO_LEVELS = {"two": QUANTIZERS["residual"]}  # below TOP: three grids of codes
NAMES = [*QUANTIZERS, *TWO_LEVELS]
CODES = {"two": 34, "residual": 24, "vq": 32, "turned": 32, "sim": 32, "fsq": 36, "lfq": 32}


def codec(quantizer, **options):
    started = {"initial_vectors": 256, "revive_every": 3} if quantizer["kind"] in ("vq", "residual") else {}
    model = {**CODEC, **started, "quantizer": quantizer, **options}
    return {"kind": "vqvae", "model": model, "training": {**TRAINING, "ema": 0.9}}


STAGES = {
    "bpe": {"kind": "bpe", "vocab_size": 300},
    "vae": {"kind": "vae", "model": CODEC, "training": TRAINING},
    "bound": {
        "kind": "vae",
        "model": {**CODEC, "variance": "learned", "kl_warmup": 0.5, "free_bits": 0.02},
        "training": {**TRAINING, "steps": 40},
    },
    "clip": {"kind": "clip", "needs": ["bpe"], "model": TOWERS, "training": TRAINING},
    **{name: codec(quantizer) for name, quantizer in QUANTIZERS.items()},
    **{name: codec(quantizer, top=TOP, initial_vectors=160) for name, quantizer in TWO_LEVELS.items()},
    "encode": {"kind": "encode", "needs": ["bound", "two", "bpe", "clip"]},
    "mdlm": {
        "kind": "mdlm",
        "needs": ["encode"],
        "model": {"dim": 32, "layers": 1, "heads": 2},
        "training": TRAINING,
    },
    "eval": {"kind": "eval", "needs": ["vae", "bound", *NAMES], "reconstructions": 5},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with a VQ-VAE for each quantiser, and a masked model over the codes of one with two levels."""
    out = tmp_path_factory.mktemp("codecs")
    recipe = {"name": "tiny", "data": {"kind": "scenes", "size": 16, "count": 40}, "stage": STAGES}
    (out / "tiny.json").write_text(json.dumps({"recipe": recipe}))
    run = open_run(out / "tiny.json", out=out, data=None)
    for name in run.recipe.order():
        run_stage(run, name)
    return run


def report(run):
    return json.loads((run.stage_folder("eval") / "report.json").read_text())["figures"]


def pictures(run, batch=3):
    return once(run.held_out(), image_and_caption(16), batch=batch)


@pytest.mark.parametrize("name", NAMES)
def test_every_quantiser_trains_is_loaded_again_and_judged(run, name):
    model = load_vqvae(run, name)
    assert model.config.codes == sum(model.config.vocabularies) == CODES[name]
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = model.codes(x)
    length = {"two": 4 + 16 + 16, "residual": 16 + 16}.get(name, 16)
    assert codes.shape == (3, length) and codes.max() < CODES[name]
    assert model.decode_codes(codes, 16, 16).shape == x.shape
    lines = [json.loads(line) for line in (run.stage_folder(name) / "log.jsonl").read_text().splitlines()]
    (last,) = (line for line in lines if line["split"] == "validation" and line["step"] == 12)
    assert 0 < last["usage"] <= 1 <= last["perplexity"] <= CODES[name] and 0 < last["top_share"] <= 1
    figures = report(run)
    baseline = figures[f"{name}.patch_kmeans_psnr"]
    grids = len(model.config.vocabularies)
    assert baseline["value"] > 5 if grids == 1 else f"{grids} grids of codes stand for a picture" in baseline["reason"]
    psnr = [line["psnr"] for line in lines if line["split"] == "validation"]
    assert np.isfinite(figures[f"{name}.psnr"]["value"]) and psnr[-1] > psnr[0]
    codes = np.concatenate([model.codes(batch["image"]).flatten(1) for batch in pictures(run)])
    assert len(codes) == 8 > run.recipe.stage["eval"].reconstructions  # all of the split, not only those that judge
    counts = np.bincount(codes.ravel(), minlength=CODES[name])
    assert figures[f"{name}.usage"] == {**figures[f"{name}.usage"], "value": (counts > 0).mean(), "n": codes.size}
    assert figures[f"{name}.dead_codes"]["value"] == (counts == 0).sum()
    assert figures[f"{name}.perplexity"]["value"] == pytest.approx(np.exp(entropy(counts)))
    assert figures[f"{name}.top_share"]["value"] == pytest.approx(counts.max() / codes.size)
    assert "10,000 tokens are drawn" in figures[f"{name}.usage_at_10k"]["reason"]
    levels = np.split(counts, np.cumsum(model.config.vocabularies)[:-1])
    places = [h * w for h, w in model.grids(16, 16)]
    rate = sum(count * np.log2(len(level)) for count, level in zip(places, levels, strict=True)) / 16**2
    assert figures[f"{name}.bits_per_pixel"]["value"] == pytest.approx(rate)
    coded = figures[f"{name}.bits_per_pixel[entropy]"]
    assert coded["value"] == pytest.approx(
        sum(count * entropy(level, base=2) for count, level in zip(places, levels, strict=True)) / 16**2
    )
    assert coded["low"] < coded["value"] < coded["high"] and coded["value"] <= rate
    for number, level in enumerate(levels, 1):
        alone = figures.get(f"{name}.level{number}.perplexity")
        assert alone is None if grids == 1 else alone["value"] == pytest.approx(np.exp(entropy(level)))


def test_the_bound_of_a_vae_falls_and_its_scale_and_warm_up_are_kept(run):
    lines = [json.loads(line) for line in (run.stage_folder("bound") / "log.jsonl").read_text().splitlines()]
    bits = [line["bits_per_dim"] for line in lines if line["split"] == "validation"]
    assert 0 < bits[-1] < bits[0]
    model = load_vae(run, "bound")
    assert model.log_scale is not None and model.log_scale.item() != pytest.approx(np.log(0.1))
    task = VAETask(run, "bound", run.recipe.stage["bound"])
    weights = []
    for step in (0, 9, 19, 39):
        task.before(step, 40, 40, torch.Generator(), [])
        weights.append(task.warmth)
    assert weights == pytest.approx([0.05, 0.5, 1, 1])


@pytest.mark.parametrize("name", ["vae", "bound"])
def test_the_kl_of_a_vae_is_information_and_missed_prior(run, name):
    figures = report(run)
    for part in ("", "[picture]"):
        kl, information, missed = (figures[f"{name}.{term}{part}"] for term in TERMS)
        assert kl["value"] == pytest.approx(information["value"] + missed["value"], abs=1e-9)
        assert kl["n"] == 8 and kl["low"] < kl["value"] < kl["high"]
    assert figures[f"{name}.mutual_information[picture]"]["value"] <= np.log(8) + 1e-9
    model = load_vae(run, name)
    exact = torch.cat([model.encode(batch["image"]).kl() for batch in pictures(run)]).numpy()
    found = figures[f"{name}.kl[picture]"]
    assert found["value"] == pytest.approx(
        exact.mean(), abs=4 * np.sqrt(64 / 8)
    )  # a draw has a deviation of some sqrt d
    rate = figures[f"{name}.bits_per_pixel"]
    assert rate["value"] == pytest.approx(found["value"] / np.log(2) / 16**2)
    moved = torch.cat([model.encode(batch["image"]).mean for batch in pictures(run)]).var(0).mean((1, 2))
    assert figures[f"{name}.active_units"]["value"] == int((moved > 0.01).sum())


def test_the_bound_on_pictures_is_the_loss_of_the_vae_at_full_weight(run):
    figures, model = report(run), load_vae(run, "bound")
    assert "variance is 'none'" in figures["vae.bits_per_dim"]["reason"]
    (batch,) = pictures(run, 8)
    losses = [
        float(
            model(batch["image"], torch.Generator().manual_seed(seed)).loss(batch["image"], kind="l2", weight=1).total
        )
        for seed in range(20)
    ]
    found = figures["bound.bits_per_dim"]
    spread = np.std(losses) / np.log(2)
    assert found["value"] == pytest.approx(np.mean(losses) / np.log(2), abs=5 * spread + 0.02)
    assert found["n"] == 8 and found["low"] < found["value"] < found["high"]


def test_latents_are_of_pictures_evenly_spaced_over_the_split(run, monkeypatch):
    monkeypatch.setattr("pipelines.posterior_measures.BATCH", 3)
    monkeypatch.setattr("pipelines.posterior_measures.PICTURES", 4)
    model = load_vae(run, "bound")
    e = SimpleNamespace(run=run, seed=0)
    found = held_out_latents(e, "bound", model)
    (batch,) = pictures(run, 8)
    assert found.mean == pytest.approx(model.encode(batch["image"][::2]).mean.numpy(), abs=1e-5)
    assert len(found.nll) == len(found.log_prior) == 4
    assert held_out_latents(e, "vae", load_vae(run, "vae")).nll is None


def test_features_without_a_judge_are_missing_with_a_reason(run):
    figures = report(run)
    for metric in ("fd", "featdist"):
        assert "no stage of kind judge" in figures[f"recon.vae.{metric}"]["reason"]


def test_the_page_sets_all_autoencoders_side_by_side(run):
    e = Evaluation(run, "eval", run.recipe.stage["eval"], Judges.load(run, "eval"), *[read_set(run, "test", 5)] * 2)
    autoencoders(e)
    (section,) = e.sections
    (table, chart), figures = section.blocks[:2], e.figures
    names = ["vae", "bound", *NAMES]
    assert [row.cells[0] for row in table.rows] == names
    assert all(row.cells[1] == 4 and row.cells[-2] >= 12 and row.cells[-1] > 0 for row in table.rows)
    places = {point.name: (point.x, point.y.value) for point in chart.points}
    assert [name for name in places if "k-means" not in name] == names
    marks = [name for name in places if "k-means" in name]
    assert places["k-means, 32 codes, f4"][0] == places["vq"][0] and len(marks) == len(set(marks))
    assert {places[name] for name in marks} == {
        (figures[f"{name}.bits_per_pixel"].value, figures[f"{name}.patch_kmeans_psnr"].value)
        for name in NAMES
        if isinstance(figures[f"{name}.patch_kmeans_psnr"], Figure)
    }
    worst = next(block for block in section.blocks if block.title == "vq: the 5 worst of 5 by PSNR")
    decibels = [float(caption.split(" dB. ")[0]) for _, caption in worst.items]
    assert decibels == sorted(decibels) and np.mean(decibels) == pytest.approx(places["vq"][1], abs=0.01)
    back, apart = (block for block in section.blocks if isinstance(block, Gallery) and block.columns == 1)
    (inputs, _), *rows = back.items
    assert np.array_equal(inputs, e.real.pictures) and [about.split(",")[0] for _, about in rows] == names
    for (again, about), (difference, beside), codec in zip(rows, apart.items, names, strict=True):
        assert about == beside and about.startswith(f"{codec}, {places[codec][1]:.2f} dB")
        expected = 4 * np.minimum(abs(np.asarray(inputs).astype(int) - np.asarray(again)), 63)
        assert np.array_equal(difference, expected) and expected.any()


def test_many_autoencoders_show_fewer_of_their_worst_pictures_but_always_some():
    assert [worst_shown(count) for count in (1, 8, 10, 28, 500)] == [20, 20, 16, 5, 4]


def test_a_masked_model_reads_and_writes_grids_of_two_sizes(run):
    sampler = MaskedSampler.load(run, "mdlm")
    layout = sampler.layout
    assert (layout.sides, layout.image_vocabs, layout.image_length) == ((2, 4, 4), (10, 12, 12), 36)
    prompts = ["a red star on a sky background"] * 2
    settings = Settings(sampler="masked_ancestral", steps=3, guidance=1.5)
    pictures = sampler.pictures(prompts, generators(prompts, 0), settings)
    assert [picture.size for picture in pictures] == [(16, 16)] * 2
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    hidden = sampler.hidden_box((0.5, 0.0, 1.0, 1.0)).split((4, 16, 16))
    for grid, side in zip(hidden, layout.sides, strict=True):  # the same half of the picture in each
        columns = grid.view(side, side).unflatten(1, (2, -1))
        assert columns[:, 1].all() and not columns[:, 0].any()
    (corner, fine, _) = sampler.hidden_box((0.0, 0.0, 0.2, 0.2)).split((4, 16, 16))
    assert corner.nonzero().flatten().tolist() == [0] == fine.nonzero().flatten().tolist()
    drawn = sampler.fill(layout.masked(2), layout.masked(2) < 0, generators(prompts, 1), settings).x
    assert layout.allowed().gather(1, drawn.T.cpu()).all()
    picture, _ = sampler.infill(x, "a red star", (0.5, 0.0, 1.0, 1.0), generators(["x"], 0), settings)
    assert picture.size == (16, 16)


@pytest.mark.parametrize("name", ["turned", "sim", "residual", "two"])
def test_every_parameter_takes_part_before_the_codes_do(run, name):
    network = VQVAETask(run, name, run.recipe.stage[name]).network
    network(torch.rand(2, 3, 16, 16) * 2 - 1, quantise=False).x_hat.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_codebooks_start_coarse_to_fine_and_the_dead_codes_of_each_level_revive(run):
    stage = run.recipe.stage["two"]
    task, generator = VQVAETask(run, "two", stage), torch.Generator().manual_seed(0)
    top, (fine, finer) = task.network.top.quantizer, task.network.quantizer.levels
    assert task.beside(0, 40, 40) is None and task.beside(1, 40, 40) is None
    task.before(0, 40, 40, generator, [])
    assert not task.quantise
    read = list(task.beside(2, 40, 40))  # unquantised for 0.05 of 40 steps
    task.before(2, 40, 40, generator, read)
    assert task.quantise
    pool = [task._vectors(read, level, stage.model.initial_vectors) for level in range(2)]  # with the codes above
    centres = [top.codebook, fine.codebook]
    for vectors, book in zip(pool, centres, strict=True):
        assert len(vectors) == 160
        near = torch.cdist(vectors, book).argmin(1)
        means = torch.stack([vectors[near == code].mean(0) for code in range(len(book))])
        assert (means - book).norm() < 0.1 * book.norm()  # fixed points of Lloyd's algorithm, nearly
    for quantizer in (top, fine, finer):
        quantizer.codebook[3], quantizer.cluster_size[3] = 1e3, 0.0
    task.before(3, 40, 40, generator, list(task.beside(3, 40, 40)))
    assert all(quantizer.codebook[3].abs().max() < 1e2 for quantizer in (top, fine, finer))


def test_vectors_that_codes_start_from_are_of_many_pictures_however_large_their_grids(run):
    task = VQVAETask(run, "vq", run.recipe.stage["vq"])
    shown = torch.cat([batch["image"] for batch, _ in islice(task.stream(32, task.seed + 1).batches(64 * 5), 2)])
    held = task.network.vectors(shown).unflatten(0, (len(shown), -1))  # (64, 16, d): 16 of each picture

    read = list(task._pictures(64, offset=5))
    found = task._vectors(read, 0, 64, offset=5)
    assert len(found) == 64 and torch.equal(found, task._vectors(read, 0, 64, offset=5))
    of = (found[:, None, None] == held).all(-1).any(-1)  # (64, 64): each vector, each picture
    assert of.any(1).all() and len(of.float().argmax(1).unique()) > 16  # 4 pictures would have as many
    assert torch.equal(task._vectors(read, 0, 32 * 16, offset=5), held[:32].flatten(0, 1))  # all, where all are wanted


def test_a_codebook_that_collapses_is_warned_of(run, caplog):
    task = VQVAETask(run, "vq", run.recipe.stage["vq"])
    model = task.network.eval()
    with torch.no_grad():
        model.quantizer.codebook[1:] = 1e3  # all vectors fall to one code
        found = task.validate(model)
        assert found["perplexity"] == 1 and found["top_share"] == 1 and "collapses" not in caplog.text
        task.quantise = True  # before the codebook has started that says nothing
        with caplog.at_level(logging.WARNING):
            task.validate(model)
        assert "1 of 32 codes occur in" in caplog.text and "as if there were 1" in caplog.text
    assert np.isfinite(found["psnr"])


def test_pictures_are_mirrored_one_by_one_where_a_stage_asks_for_it_alone(run):
    stage, x = run.recipe.stage["vq"], torch.randn(400, 3, 4, 4)
    plain, turning = (VQVAETask(run, "vq", replace(stage, flip=flip)) for flip in (False, True))
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert plain.shown({"image": x}, generator) is x and torch.equal(generator.get_state(), before)
    seen = turning.shown({"image": x}, generator)
    same, mirrored = (seen == x).flatten(1).all(1), (seen == x.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all() and abs(int(mirrored.sum()) - 200) < 50  # five standard deviations
    batch = {"image": x[:8]}
    losses = [task.loss(task.network, batch, step_generator(0, 0, 0))[0].item() for task in (plain, turning)]
    assert losses[0] != losses[1]
