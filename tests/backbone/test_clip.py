"""Contrastive towers against open_clip's own loss, loader and encoders."""

import importlib
import json
import shlex
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from backbone import clip, cure
from backbone.clip import (
    ContrastiveConfig,
    cap,
    caption_groups,
    contrastive_loss,
    image_features,
    paired_loss,
    text_states,
)

open_clip = clip.import_open_clip()
CONFIG = ContrastiveConfig(
    vocab_size=64, end_id=1, context_length=10, image_size=16, patch_size=8, width=32, layers=1, heads=2,
    text_width=24, text_layers=2, text_heads=2, embed_dim=20,
)  # fmt: skip


def tokens(*rows: list[int], length: int = 10) -> torch.Tensor:
    """Rows of ids, each closed by the end token and padded."""
    return torch.tensor([[*row, 1] + [0] * (length - len(row) - 1) for row in rows])


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


@pytest.fixture(scope="module")
def model():
    return CONFIG.build(seed=0).eval()


def test_loss_is_open_clips_when_all_captions_differ():
    image, text = unit(6, 8, seed=0).float().requires_grad_(), unit(6, 8, seed=1).float().requires_grad_()
    scale = torch.tensor(14.0, requires_grad=True)
    ours = contrastive_loss(image, text, scale, torch.arange(6))
    theirs = open_clip.ClipLoss()(image, text, scale)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours, (image, text, scale)), torch.autograd.grad(theirs, (image, text, scale)), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_duplicate_captions_are_positives_of_each_other():
    image, text, groups = unit(4, 8, seed=2), unit(4, 8, seed=3), torch.tensor([5, 9, 5, 7])
    logits = 10 * image @ text.T
    rows, columns = logits.log_softmax(1), logits.log_softmax(0)
    positives = {0: (0, 2), 1: (1,), 2: (0, 2), 3: (3,)}
    by_hand = -sum(sum(rows[i, j] + columns[j, i] for j in js) / len(js) for i, js in positives.items()) / 8
    loss, blind = (contrastive_loss(image, text, torch.tensor(10.0), g).double() for g in (groups, torch.arange(4)))
    torch.testing.assert_close(loss, by_hand, rtol=1e-5, atol=1e-6)
    assert (loss - blind).abs() > 0.01


def test_swapping_the_captions_of_duplicates_changes_nothing():
    image, text, groups = unit(4, 8, seed=2), unit(4, 8, seed=3), torch.tensor([5, 9, 5, 7])
    swapped = text[[2, 1, 0, 3]]
    losses = [contrastive_loss(image, t, torch.tensor(10.0), groups) for t in (text, swapped)]
    torch.testing.assert_close(*losses)
    broken = [contrastive_loss(image, t, torch.tensor(10.0), torch.arange(4)) for t in (text, swapped)]
    assert (broken[0] - broken[1]).abs() > 0.01


def test_a_scale_beyond_one_hundred_is_brought_back_and_can_still_fall():
    image, text, groups = unit(5, 8, seed=4), unit(5, 8, seed=5), torch.arange(5)
    log_scale = torch.nn.Parameter(torch.tensor(1000.0).log())
    cap(log_scale)
    assert log_scale.exp().item() == pytest.approx(100)
    contrastive_loss(image, text, log_scale.exp(), groups).backward()
    assert log_scale.grad.item() > 0  # these pairs do not fit, so a smaller scale is better


def test_groups_are_equal_exactly_for_equal_rows():
    rows = tokens([5, 6], [7], [5, 6], [6, 5], [])
    groups = caption_groups(rows)
    same = (rows[:, None] == rows[None]).all(-1)
    assert torch.equal(groups[:, None] == groups[None], same)


def test_pooled_text_is_open_clips_encode_text_and_stands_at_the_end_token(model):
    rows = tokens([5, 6, 7], [63], [])
    sequence, pooled = text_states(model, rows)
    assert sequence.shape == (3, 10, 24) and pooled.shape == (3, 20)
    torch.testing.assert_close(pooled, model.encode_text(rows))
    ends = sequence[torch.arange(3), torch.tensor([3, 1, 0])]
    torch.testing.assert_close(pooled, ends @ model.text_projection)


def test_text_tower_is_causal_so_padding_and_later_words_do_not_matter(model):
    rows = tokens([5, 6, 7])
    changed = rows.clone()
    changed[0, 4:] = 33
    kept, other = text_states(model, rows), text_states(model, changed)
    torch.testing.assert_close(kept.sequence[:, :4], other.sequence[:, :4])
    torch.testing.assert_close(kept.pooled, other.pooled)
    assert not torch.allclose(kept.sequence[:, 4:], other.sequence[:, 4:])


def test_word_order_changes_the_embedding(model):
    pooled = text_states(model, tokens([5, 6, 7], [7, 6, 5])).pooled
    assert not torch.allclose(pooled[0], pooled[1], atol=1e-3)


def test_images_in_minus_one_to_one_enter_our_model_as_they_are_and_other_sizes_are_resized(model):
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(image_features(model, images), model.encode_image(images))
    doubled = images.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert image_features(model, doubled).shape == (2, 20)
    big, small = (torch.full((1, 3, side, side), 0.3) for side in (48, 16))
    torch.testing.assert_close(image_features(model, big), image_features(model, small), atol=1e-4, rtol=0)


def test_pretrained_mean_and_deviation_are_applied():
    visual = SimpleNamespace(image_size=(4, 4), preprocess_cfg={"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 2.0)})
    fake = SimpleNamespace(visual=visual, encode_image=lambda x: x)
    seen = image_features(fake, torch.zeros(1, 3, 4, 4))[0, :, 0, 0]
    torch.testing.assert_close(seen, torch.tensor([(0.5 - 0.1) / 0.5, (0.5 - 0.2) / 0.25, (0.5 - 0.3) / 2.0]))


def test_building_depends_on_the_seed_alone():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    a, b, c = CONFIG.build(seed=3), CONFIG.build(seed=3), CONFIG.build(seed=4)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.token_embedding.weight, c.token_embedding.weight)


def test_a_step_down_the_gradient_tells_pairs_apart():
    model, rows = CONFIG.build(seed=0), tokens([5], [6], [7], [8])
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for _ in range(8):
        loss = paired_loss(model, images, rows)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_saved_model_is_the_same_model_here_and_in_open_clip(model, tmp_path):
    clip.save_contrastive(tmp_path, CONFIG, model)
    again = clip.load_contrastive(tmp_path)
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    images, rows = torch.linspace(-1, 1, 768).view(1, 3, 16, 16), tokens([5, 6, 7])
    for other in (again, theirs):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
        assert torch.equal(image_features(model, images), image_features(other, images))
        assert torch.equal(text_states(model, rows).sequence, text_states(other, rows).sequence)
    assert not again.training


def test_resnet_tower_keeps_its_running_statistics_and_serves_any_size(tmp_path):
    config = ContrastiveConfig(
        vocab_size=64, end_id=1, context_length=10, width=4, heads=4, text_layers=1, embed_dim=20
    )
    model = config.build(seed=0)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    paired_loss(model, images, tokens([5], [6], [7], [8])).backward()  # moves the batch statistics
    clip.save_contrastive(tmp_path, config, model.eval())
    again = clip.load_contrastive(tmp_path)
    assert torch.equal(image_features(again, images), image_features(model, images))
    assert not torch.allclose(image_features(config.build(seed=0).eval(), images), image_features(model, images))
    one = image_features(again, images[:1])
    torch.testing.assert_close(one, image_features(again, images)[:1], rtol=1e-4, atol=1e-5)
    assert image_features(again, torch.zeros(1, 3, 20, 44)).shape == (1, 20)


def test_hash_follows_the_weights(model, tmp_path):
    clip.save_contrastive(tmp_path / "a", CONFIG, model)
    clip.save_contrastive(tmp_path / "b", CONFIG, model)
    clip.save_contrastive(tmp_path / "c", CONFIG, CONFIG.build(seed=1))
    a, b, c = (clip.contrastive_hash(tmp_path / name) for name in "abc")
    assert a == b != c


def test_ema_and_plain_names_load_and_the_average_comes_first(model, tmp_path):
    clip.save_contrastive(tmp_path, CONFIG, model)
    (tmp_path / clip.WEIGHTS[0]).rename(tmp_path / "model.safetensors")
    assert clip.find_weights(tmp_path).name == "model.safetensors"
    (tmp_path / "ema.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    assert clip.find_weights(tmp_path).name == "ema.safetensors"
    assert clip.load_contrastive(tmp_path).logit_scale == model.logit_scale


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "model.pt"])
def test_folder_with_a_pickle_alone_is_refused_with_a_remedy_that_works(model, tmp_path, name, monkeypatch):
    clip.save_contrastive(tmp_path, CONFIG, model)
    weights = tmp_path / clip.WEIGHTS[0]
    torch.save(load_file(weights), tmp_path / name)
    weights.unlink()
    with pytest.raises(ValueError, match=r"is a pickle, which can run code.*Convert it once") as refusal:
        clip.load_contrastive(tmp_path)
    _, _, code, source, target = shlex.split(str(refusal.value).split("Convert it once: ")[1])
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path / source), str(tmp_path / target)])
    exec(code, {})
    assert torch.equal(clip.load_contrastive(tmp_path).logit_scale, model.logit_scale)


def test_a_torn_a_foreign_and_a_missing_file_are_refused_in_a_sentence(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no open_clip_config\.json"):
        clip.load_contrastive(tmp_path)
    clip.save_contrastive(tmp_path, CONFIG, model)
    weights, config = tmp_path / clip.WEIGHTS[0], tmp_path / clip.CONFIG
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        clip.load_contrastive(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="has no weights"):
        clip.load_contrastive(tmp_path)
    weights.write_bytes(whole)
    document = json.loads(config.read_text())
    document["model_cfg"]["text_cfg"]["vocab_size"] = 65
    config.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"does not fit .*token_embedding"):
        clip.load_contrastive(tmp_path)
    config.write_text('{"model_cfg": {}}')
    with pytest.raises(ValueError, match="is not an open_clip configuration"):
        clip.load_contrastive(tmp_path)


def test_hugging_face_towers_are_refused_in_a_sentence(tmp_path):
    text = {"hf_model_name": "roberta-base"}
    document = {"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": text}}
    (tmp_path / clip.CONFIG).write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"roberta-base.*not supported"):
        clip.load_contrastive(tmp_path)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"image_size": 48}, "stride 32"),
        ({"layers": 2, "patch_size": 5}, "stride 5"),
        ({"text_heads": 5}, "heads 5"),
        ({"end_id": 64}, "end_id 64"),
    ],
)
def test_impossible_sizes_are_refused_in_a_sentence(changed, words):
    sizes = {"vocab_size": 64, "end_id": 1, "image_size": 32}
    with pytest.raises(ValueError, match=words):
        ContrastiveConfig(**{**sizes, **changed})


def test_cure_leaves_real_operators_alone(monkeypatch):
    monkeypatch.setattr(cure, "_has_operators", lambda: True)
    monkeypatch.setattr(torch.library, "Library", lambda *_: pytest.fail("schemas were declared beside real operators"))
    assert clip.cure_torchvision.__wrapped__() is None


def test_torchvision_imports_after_the_cure_which_is_idempotent():
    assert clip.cure_torchvision() is clip.cure_torchvision()
    torchvision = importlib.import_module("torchvision")
    assert torchvision.transforms is not None and hasattr(torch.ops.torchvision, "nms")
