"""Text encoders: one loader for a trained folder and a downloaded one."""

import json

import pytest
import torch
from safetensors.torch import save_file

from backbone import clip
from tokenizer.embed import TextEncoder, load_text_encoder
from tokenizer.text import BPE

open_clip = clip.import_open_clip()
CAPTIONS = [
    f"a large {c} {s} above a small {d} ring"
    for c in ("red", "blue")
    for s in ("star", "ring")
    for d in ("red", "blue")
]
LENGTH = 24
TINY = {"width": 16, "layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a clip stage: random weights, our tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    bpe = BPE.train(CAPTIONS, 512, LENGTH)
    config = clip.ContrastiveConfig(
        vocab_size=bpe.vocab_size, end_id=bpe.end_id, pad_id=bpe.pad_id, context_length=LENGTH,
        width=16, layers=1, heads=2, text_width=16, text_layers=2, embed_dim=12, patch_size=16,
    )  # fmt: skip
    clip.save_contrastive(folder, config, config.build(seed=0))
    bpe.save(folder / "bpe.json")
    return folder


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    """Folder in the layout of open_clip's hub: their default vocabulary, argmax pooling, no tokenizer file."""
    folder = tmp_path_factory.mktemp("hub")
    vision = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8}
    model_cfg = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": {"context_length": 77, "vocab_size": 49408, **TINY}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(open_clip.CLIP(**model_cfg).state_dict(), folder / clip.WEIGHTS[0])
    (folder / clip.CONFIG).write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0.5] * 3}}))
    return folder


@pytest.fixture(scope="module", params=["trained", "downloaded"])
def encoder(request) -> TextEncoder:
    return load_text_encoder(request.getfixturevalue(request.param))


def test_shapes_are_those_that_the_encoder_states(encoder):
    tokens, mask, pooled = encoder.embed(["a red star", ""])
    assert tokens.shape == (2, encoder.length, encoder.width) and tokens.dtype == torch.float32
    assert mask.shape == (2, encoder.length) and mask.dtype == torch.bool
    assert pooled.shape == (2, encoder.pooled_width)
    assert not tokens[~mask].any() and mask[:, 0].all() and not tokens.requires_grad


def test_embedding_does_not_depend_on_the_batch(encoder):
    captions = ["a red star", "a large blue ring above a small red ring", "", "🙂 <end>", *CAPTIONS]
    together = encoder.embed(captions)
    alone = [encoder.embed([caption]) for caption in captions]
    for name in ("tokens", "mask", "pooled"):
        torch.testing.assert_close(getattr(together, name), torch.cat([getattr(one, name) for one in alone]))


def test_embedding_does_not_depend_on_padding(encoder):
    encoded = encoder.tokenizer.encode(["a red star"])
    noisy = encoded.tokens.clone()
    noisy[:, int(encoded.lengths) :] = 5
    a, b = encoder.embed_tokens(encoded), encoder.embed_tokens(encoded._replace(tokens=noisy))
    torch.testing.assert_close(a.tokens, b.tokens)
    torch.testing.assert_close(a.pooled, b.pooled)


def test_prompts_with_equal_first_fifty_characters_have_their_own_embeddings(encoder):
    head = "a large red star above a small blue ring on a large "
    assert len(head) >= 50
    first = encoder.embed([head + "red"])
    second = encoder.embed([head + "blue"])
    assert (first.pooled - second.pooled).abs().max() > 1e-3
    assert (first.tokens - second.tokens).abs().max() > 1e-3


def test_swapped_words_have_their_own_embeddings(encoder):
    pooled = encoder.embed(["a red star above a blue ring", "a blue star above a red ring"]).pooled
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3


def test_long_hostile_and_empty_captions_embed_to_finite_numbers(encoder):
    embedding = encoder.embed(["x" * 10_000, "a red star " * 900, "", "\ud800\x00<pad><end>", "<|endoftext|> a"])
    assert embedding.tokens.isfinite().all() and embedding.pooled.isfinite().all()
    assert encoder.tokenizer.encode(["x" * 10_000, "a red star " * 900, "a"]).truncated.tolist() == [True, True, False]


def test_many_captions_are_split_into_batches_and_keep_their_order(encoder):
    captions = [f"a {CAPTIONS[i % 8]} {i}" for i in range(300)]
    pooled = encoder.embed(captions).pooled
    torch.testing.assert_close(pooled[297:], encoder.embed(captions[297:]).pooled)
    assert encoder.embed([]).tokens.shape == (0, encoder.length, encoder.width)


def test_downloaded_folder_gives_what_open_clip_gives(downloaded):
    encoder = load_text_encoder(downloaded)
    model = open_clip.create_model(f"local-dir:{downloaded}").eval()
    captions = ["A photo of a Cat!", "a red star"]
    with torch.no_grad():
        theirs = model.encode_text(open_clip.get_tokenizer(f"local-dir:{downloaded}")(captions))
    ours = encoder.embed(captions)
    torch.testing.assert_close(ours.pooled, theirs)
    ends = ours.tokens[torch.arange(2), ours.mask.sum(1) - 1]  # the last position under the mask is the end token
    torch.testing.assert_close(ends @ model.text_projection, theirs)


def test_caption_that_just_fits_open_clips_length_is_not_truncated(downloaded):
    tokenizer = load_text_encoder(downloaded).tokenizer
    assert tokenizer.encode(["red " * 75, "red " * 76]).truncated.tolist() == [False, True]


def test_identity_follows_weights_and_tokenizer(trained, downloaded, tmp_path):
    mine = load_text_encoder(trained).identity
    assert mine == load_text_encoder(trained).identity != load_text_encoder(downloaded).identity
    for name in (clip.CONFIG, clip.WEIGHTS[0]):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    document = json.loads((trained / "bpe.json").read_text())
    document["normalizer"]["normalizers"].pop(1)  # case would matter
    (tmp_path / "bpe.json").write_text(json.dumps(document))
    assert load_text_encoder(tmp_path).identity != mine


def test_another_tokenizer_is_refused_in_a_sentence(trained, tmp_path):
    for name in (clip.CONFIG, clip.WEIGHTS[0]):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    with pytest.raises(ValueError, match=r"vocabulary is 49408, the model's \d+; put the bpe\.json"):
        load_text_encoder(tmp_path)
    BPE.train(CAPTIONS, 512, LENGTH + 1).save(tmp_path / "bpe.json")
    with pytest.raises(ValueError, match="length is 25, the model's 24"):
        load_text_encoder(tmp_path)


def test_hugging_face_tokenizers_are_refused_in_a_sentence(downloaded, tmp_path):
    document = json.loads((downloaded / clip.CONFIG).read_text())
    document["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "timm/ViT-B-16-SigLIP"
    (tmp_path / clip.CONFIG).write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"ViT-B-16-SigLIP.*not supported"):
        load_text_encoder(tmp_path)
