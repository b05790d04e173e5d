"""What every figure means in plain words: label, unit, direction and definition, looked up by the figure's name."""

import re
from dataclasses import dataclass

from eval.figure import Better, Unit

SUBJECTS = {
    "latent": "latent flow",
    "ddpm": "latent DDPM",
    "mdlm": "masked diffusion",
    "ar": "autoregressive",
    "caption": "captions",
    "vae": "VAE",
    "vqvae": "VQ-VAE",
    "text": "text",
    "real": "real pictures",
    "recon.vae": "VAE reconstructions",
    "recon.vqvae": "VQ-VAE reconstructions",
    "shuffled": "shuffled captions",
    "chance": "chance",
}
SLICES = {"": "all", "one": "one object", "two": "two objects", "three": "three objects", "unseen": "unseen pairs"}
ATTRIBUTES = ("background", "colour", "shape", "size", "relation")
STUDY = re.compile(r"study\.(?P<criterion>[^.\[]+)\.[a-z_]+(?:\[(?P<who>.*)\])?")
SCENE = re.compile(
    r"(?P<subject>.+)\.scene\.(?P<attribute>[a-z_]+?)(?:\.(?P<slice>one|two|three|unseen))?",
)


@dataclass(frozen=True)
class Definition:
    """Label for tiles and tables, unit, which direction is better, and the definition in plain words."""

    label: str
    unit: Unit
    better: Better | None
    text: str


RULES: tuple[tuple[str, str, Unit, Better | None, str], ...] = (
    (r"study\..*\.win_rate\[.*\]", "win rate", "share", None,
     "Share of votes for the first model of the pair, a tie counting half to each. Prompts are resampled, since votes "
     "on one prompt are not independent. 50 % is no preference."),
    (r"study\..*\.points\[.*\]", "strength in points", "plain", "higher",
     "Bradley-Terry strength above the anchor on the scale of 400 / ln 10: 400 points are odds of ten to one. One fit "
     "over all votes, ties half; no rating that depends on the order of votes."),
    (r"study\..*\.grade\[.*\]", "mean grade", "plain", "higher",
     "Mean of the grades 1 to 5 that raters gave, whose meanings were written beside the question."),
    (r"study\..*\.alpha", "Krippendorff's alpha", "plain", None,
     "Agreement of raters beyond chance: 1 is perfect, 0 what chance gives. Tastes differ: low values are normal for "
     "preferences. The interval resamples the pairs or pictures that were judged."),
    (r"study\.consistency", "repeats answered alike", "share", "higher",
     "Share of repeated pairs that a rater answered as the first time, with the sides swapped."),
    (r"study\.left", "answers for the left picture", "share", None,
     "Share of answers for the left picture among those that were no tie; 50 % without a bias for a side."),
    (r".*\.image_nats_per_token", "cost of a code", "plain", "lower",
     "Exact -ln p of a held-out picture's codes given its caption under an autoregressive model, per code. It compares "
     "over models of one tokenizer's codes only."),
    (r".*\.code_bits_per_dim", "cost of the codes per pixel value", "plain", "lower",
     "The same cost in bits over the values of the picture's pixels: how long a file of the codes would be. What the "
     "codes leave out of the picture is not in it, so it is no likelihood of pixels."),
    (r".*\.pair_nats", "cost of a pair", "plain", "lower",
     "Exact -ln p in nats of a held-out caption and the codes of its picture together under an autoregressive model; "
     "bounds on pairs of masked models of the same tokens stand beside it."),
    (r".*\.text_nats_per_token", "cost of a caption", "plain", "lower",
     "Exact -ln p of a held-out caption under an autoregressive model of pairs, padding included, divided by its "
     "tokens and its end token alone."),
    (r".*\.joint_bound\[.*\]", "bound on pairs", "plain", "lower",
     "Upper bound in nats on -ln p of a held-out caption and the codes of its picture together, text and image being "
     "revealed by equal schedules or by those that were learned."),
    (r".*\.sweep\.code_entropy\[.*\]", "entropy of codes within a picture", "plain", None,
     "Entropy in nats of the code frequencies inside one picture, mean over pictures; that of held-out pictures is the "
     "mark. Far below it pictures are flatter than real ones, however good their other figures are."),
    (r".*\.sweep\.caption_entropy\[.*\]", "entropy of words within a caption", "plain", None,
     "Entropy in nats of the word frequencies inside one caption, mean over captions; that of held-out captions is the "
     "mark."),
    (r".*\.sweep\.seconds\[.*\]", "sampling sweep: seconds each", "plain", None,
     "Wall time of a picture, a caption or a text in a batch, decoding included, on the machine that made the row; the "
     "first batch of a model is drawn before the clock runs. It says nothing of another machine."),
    (r".*\.sweep\.(relation|caption_\w+)\[.*\]", "sampling sweep: as asked", "share", "higher",
     "Share of pictures whose relation the scene judge reads as asked, or of attributes that captions of held-out "
     "pictures name rightly, with the sampler, its steps and the guidance in the brackets."),
    (r".*\.text\[.*\]\.bits_per_(character|byte)", "bits per character or byte", "plain", "lower",
     "What the model says the text in the brackets costs, in bits over its characters or UTF-8 bytes: exactly for an "
     "autoregressive model, as an upper bound for all others. It compares over tokenizers."),
    (r".*\.text\[.*\]\.perplexity", "perplexity per token", "plain", "lower",
     "exp of nats per token of the same, an upper bound where the cost is one. It compares with equal tokens only."),
    (r".*\.text\[.*\]\.above_.*", "above the autoregressive model", "share", None,
     "The cost of the same windows over that of the autoregressive model, less one; paired by windows."),
    (r".*\.text\[short\]\.nats_per_token", "exact likelihood of short pieces", "plain", "lower",
     "-ln p of short pieces under the model that reveals tokens one at a time in an order drawn evenly, summed over "
     "all maskings, per token; for an autoregressive model its own order."),
    (r".*\.text\[short\]\.bound_per_token", "bound on short pieces", "plain", "lower",
     "The bound on the same, a mean of logarithms over all orders, without chance either. It is never below the cost."),
    (r".*\.genppl\[.*\]", "generative perplexity", "plain", None,
     "exp of nats per token that a frozen autoregressive model of this recipe gives generated texts. It is lower for "
     "repetitive texts, so it ranks only where the entropy is that of real text."),
    (r".*\.nats_per_character\[.*\]", "nats per character of generated text", "plain", None,
     "The same cost divided by characters."),
    (r".*\.entropy\[.*\]", "entropy within a text", "plain", None,
     "Entropy in nats of the word frequencies inside one text, mean over texts; real text is the mark."),
    (r".*\.token_entropy\[.*\]", "entropy of tokens within a text", "plain", None,
     "The same of the judge's tokens."),
    (r".*\.self_bleu_4\[.*\]", "self-BLEU", "plain", None,
     "BLEU-4 of each text against the others, mean: 1 where all are the same."),
    (r".*\.mauve_star\[.*\]", "MAUVE* under the scorer", "plain", "higher",
     "MAUVE of histograms with half a text added to every cluster (arXiv:2212.14578): no empty cluster is impossible."),
    (r".*\.frontier_integral\[.*\]", "frontier integral under the scorer", "plain", "lower",
     "Mean cost of coding the clusters of both sets by their mixtures, 0 for equal sets and 1 for disjoint ones: "
     "MAUVE's divergences without a scale."),
    (r".*\.mauve\[.*\]", "MAUVE under the scorer", "plain", "higher",
     "Area under the divergence frontier of generated and held-out texts (Pillutla 2021) on the scorer's last states, "
     "not GPT-2's; the interval is the range over seeds of the clustering, and small sets flatter it."),
    (r".*\.patch_kmeans_psnr", "patch k-means PSNR", "dB", None,
     "PSNR of a codec without a network: k-means on raw patches at the same number of bits. The VQ-VAE must beat it."),
    (r".*\.bicubic_psnr", "bicubic PSNR", "dB", None,
     "PSNR of enlarging without a network: the same small pictures, made large by bicubic interpolation."),
    (r".*\.psnr", "PSNR", "dB", "higher",
     "Peak signal-to-noise ratio between a held-out picture and its reconstruction (from codes or latents, or, for a "
     "model that enlarges, from the picture made small), 10 log10(1 / MSE) for values in [0, 1] after clamping; one "
     "value per picture, then the mean. Three dB halve the squared error."),
    (r".*\.lpips(\[.*\])?", "LPIPS", "plain", "lower",
     "Learned perceptual distance between a held-out picture and its reconstruction (Zhang 2018, version 0.1): squared "
     "differences between unit vectors of a network's maps, weighed by learned heads; mean over pictures. Weights that "
     "are not the published ones stand in the brackets, and their figure compares with no other."),
    (r".*\.ssim", "SSIM", "plain", "higher",
     "Structural similarity (Wang 2004): 11-pixel Gaussian window, valid region, mean over pictures; 1 is identical."),
    (r".*\.usage", "codes used", "share", "higher",
     "Share of the codebook's codes that occur at least once over the whole split."),
    (r".*\.perplexity", "code perplexity", "plain", "higher",
     "exp of the entropy of the code frequencies over the whole split: how many codes are in even use."),
    (r".*\.dead_codes", "dead codes", "plain", "lower", "Number of codes that never occur in the whole split."),
    (r".*\.top_share", "share of the commonest code", "share", None,
     "Share of all tokens that are the commonest code. A codebook that collapses has a large one; a large even surface "
     "in the pictures makes one, too."),
    (r".*\.usage_at_10k", "codes used in 10,000 tokens", "share", "higher",
     "Expected share of the codes that occur in 10,000 tokens drawn from the split without replacement, which compares "
     "over splits of different size."),
    (r".*\.bits_per_pixel\[entropy\]", "bits per pixel at the codes' entropy", "plain", "lower",
     "The entropy of the code frequencies of each level over the whole split, times its codes per picture, divided by "
     "the picture's pixels: what an entropy coder needs that takes each code for itself."),
    (r".*\.bits_per_pixel", "bits per pixel", "plain", "lower",
     "What a picture's latents cost, divided by its pixels (not by colour values). Codes: log2 of their number, each. "
     "VAE: KL to the prior in bits, the length that bits-back coding reaches."),
    (r".*\.bits_per_dim", "bits per dimension", "plain", "lower",
     "Upper bound on what a held-out picture of 8 bits costs under the VAE, in bits per colour value: the picture "
     "given a draw of its latents, and their KL (the negative evidence bound, whatever the KL weighed in training)."),
    (r".*\.kl\[picture\]", "KL of a picture", "plain", None,
     "KL from a picture's posterior to the prior in nats, all latent values together, by one draw of each posterior."),
    (r".*\.mutual_information\[picture\]", "information of a picture", "plain", None,
     "Mutual information between picture and latents in nats, the aggregate posterior being the mixture of the "
     "posteriors of all n pictures. It cannot exceed ln n: where it stands there, it is a lower bound."),
    (r".*\.marginal_kl\[picture\]", "missed prior of a picture", "plain", "lower",
     "KL from the aggregate posterior to the prior in nats: the KL less the information (ELBO surgery). An upper bound "
     "where the information is a lower one."),
    (r".*\.kl", "KL per latent value", "plain", None,
     "KL from the posterior to the prior in nats per latent value, by one draw of each posterior: what the two figures "
     "below add up to."),
    (r".*\.mutual_information", "information per latent value", "plain", "higher",
     "Mutual information in nats between a latent value and the picture and position that it belongs to, for each "
     "channel as a variable of one dimension, then a mean over channels. None is left where posteriors are all equal."),
    (r".*\.marginal_kl", "missed prior per latent value", "plain", "lower",
     "KL in nats from the values of a channel, over all pictures and positions, to the prior, a mean over channels: "
     "what decoding draws from the prior suffers from."),
    (r".*\.active_units", "active channels", "plain", "higher",
     "Number of latent channels whose posterior means vary by more than 0.01 from picture to picture (Burda 2015), a "
     "mean over positions."),
    (r".*\.featdist(\[.*\])?", "feature distance", "plain", "lower",
     "Mean squared difference between the judge's features of a picture and of its reconstruction, which for features "
     "of unit scale is 2 - 2 cosine; mean over pictures. The judge was trained on this data: the number is not LPIPS."),
    (r"caption\.scene\..*", "captions", "share", "higher",
     "Share of generated captions, parsed by the grammar, that name this attribute rightly for all objects in order."),
    (r".*\.scene\..*", "scene", "share", "higher",
     "Share of asked objects (of pictures, for background and relation) whose attribute the scene judge reads as the "
     "caption asked. Attributes are bound to "
     "their object and place: two swapped colours are two errors. Every object counts; the interval is over pictures."),
    (r".*\.fid(\[.*\])?", "FID", "plain", "lower",
     "Fréchet Inception distance: squared distance between Gaussians fitted to the features of the network published "
     "on 2015-12-05, pictures resized as TensorFlow 1 did. It depends on both sizes: compare with equal keys only."),
    (r".*\.(fd|fid)-infinity(\[.*\])?", "Fréchet distance of infinitely many pictures", "plain", "lower",
     "The Fréchet distance at 15 sizes of both sets, continued along 1 / n to 0, which takes away most of its bias; "
     "the interval is that of the Fréchet distance, widened by how unevenly the line weighs pictures."),
    (r".*\.mind(\[.*\])?", "MIND", "plain", "lower",
     "Mean squared 2-Wasserstein distance of the features along 1000 random directions, times 3 d (arXiv:2605.06797)."),
    (r".*\.cmmd(\[.*\])?", "CMMD", "plain", "lower",
     "1000 times the squared maximum mean discrepancy of unit features with a Gaussian kernel of width 10, biased as "
     "published (arXiv:2401.09603). It sees little but a shift of the mean. Published figures are of CLIP ViT-L/14 at "
     "336 pixels."),
    (r".*\.fd(\[.*\])?", "Fréchet distance", "plain", "lower",
     "Squared distance between two Gaussians fitted to features of generated (or reconstructed) and of real pictures. "
     "The embedder in the brackets is not the one of FID, so the number is not FID: compare with equal keys only."),
    (r".*\.precision-k\d+(\[.*\])?", "precision", "share", "higher",
     "Share of generated pictures whose features lie within some real picture's ball of k nearest neighbours: "
     "how many look real (Kynkäänniemi 2019). It depends on both set sizes."),
    (r".*\.recall-k\d+(\[.*\])?", "recall", "share", "higher",
     "Share of real pictures whose features lie within some generated picture's ball of k nearest neighbours: "
     "how much of the real variety is covered (Kynkäänniemi 2019). It depends on both set sizes."),
    (r".*\.density-k\d+(\[.*\])?", "density", "plain", "higher",
     "In how many real pictures' balls of k nearest neighbours a generated picture lies, over k, mean over generated "
     "pictures (Naeem 2020): near 1 for equal laws and above it where they crowd at the commonest pictures."),
    (r".*\.coverage-k\d+(\[.*\])?", "coverage", "share", "higher",
     "Share of real pictures whose ball of k nearest real neighbours holds a generated picture (Naeem 2020): like "
     "recall, but one odd generated picture cannot cover much. It depends on both set sizes."),
    (r".*\.sweep\.kd\[.*\]", "sampling sweep: kernel distance", "plain", "lower",
     "Unbiased squared maximum mean discrepancy with the cubic kernel on the judge's features between generated and "
     "training pictures, with the sampler, its steps, the guidance, the judge and both sizes in the brackets."),
    (r".*\.kd(\[.*\])?", "kernel distance", "plain", "lower",
     "Unbiased squared maximum mean discrepancy with the cubic kernel on the embedder's features; it may be "
     "slightly negative."),
    (r".*\.nearest(\[.*\])?", "memorisation", "share", "lower",
     "Share of generated pictures whose features lie nearer to some picture of the reference than 95 % of held-out "
     "real pictures do: 5 % where nothing is memorised."),
    (r".*\.copies(\[.*\])?", "copies", "share", "lower",
     "Share of generated pictures whose features equal those of a picture of the reference."),
    (r".*\.repeats(\[.*\])?", "repeats", "share", "lower",
     "Share of generated pictures whose features equal those of an earlier generated one."),
    (r"card\..*\.rising", "validity of the embedder", "share", "higher",
     "Share of the steps of damage (blur, noise, JPEG, lost kinds; four each) that make the Fréchet distance to "
     "untouched pictures larger. An embedder that misses them cannot judge a model by them."),
    (r"card\..*\.rank\[.*\]", "validity of the embedder", "plain", "higher",
     "Kendall's rank correlation of the Fréchet distance with the strength of the damage in the brackets: 1 where it "
     "rises with every step."),
    (r".*\.latent_offset", "scaled latents: mean", "plain", "lower",
     "Mean of the held-out latents after stage two's scaling, of the channel where its size is largest: near 0 where "
     "the statistics fit."),
    (r".*\.latent_spread", "scaled latents: deviation", "plain", None,
     "Standard deviation of the held-out latents after stage two's scaling, of the channel where it is furthest from "
     "1: near 1 where the statistics fit. Another value is the commonest mismatch of stage one and two."),
    (r".*\.failures\[(not_finite|black|even|repeated|empty)\]", "failures", "plain", "lower",
     "Number of pictures that are no result: NaN or infinite when they were drawn, black, of one colour, the same "
     "pixels as an earlier one of the set; or of texts without a word. It should be 0."),
    (r".*\.clip_score\[.*\|slice=.*\]", "CLIP score of a slice", "plain", "higher",
     "The CLIP score over a slice of the pictures: captions of so many words (terciles of all captions of the "
     "report), captions that the embedder read whole or cut, or that value of a label; of a list, its length."),
    (r".*\.clip_score(\[.*\])?", "CLIP score", "plain", "higher",
     "Cosine between the embedder's embeddings of picture and caption, unscaled; mean within prompts, then over "
     "prompts."),
    (r".*\.sweep\.(colour|shape)\[.*\]", "sampling sweep: as asked", "share", "higher",
     "Share of asked objects whose attribute the scene judge reads as the caption asked, with the sampler, its steps "
     "and the guidance in the brackets."),
    (r".*\.bits_per_dim\[ode(\|.*)?\]", "bits per latent dimension", "plain", "lower",
     "-log2 of the density that the model without guidance gives a held-out latent with its caption, along the "
     "probability-flow ODE (Hutchinson's estimate), divided by the number of values. Latents have unit variance: "
     "N(0, I) costs 2.05 bits. It compares models of one autoencoder only."),
    (r".*\.bits_per_dim\[bound(\|.*)?\]", "bits per latent dimension, bound", "plain", "lower",
     "The variational upper bound on the same, for the reverse SDE down to the noise that latents have of their own "
     "(the posterior's). Far above the density along the ODE where the model was hardly trained at low noise."),
    (r"caption\.grammatical", "grammatical captions", "share", "higher",
     "Share of generated captions that the grammar of the data can parse as a whole."),
    (r"text\.excess_nats_per_token", "excess over the grammar", "plain", "lower",
     "The bound less the exact cost of the same captions under the grammar that wrote them, per token: what is left to "
     "learn. Below 0 only by chance."),
    (r"text\.exact_nats_per_token", "exact entropy", "plain", None,
     "Mean of -ln p of the same held-out captions under the grammar that wrote them, per token: an estimate of the "
     "grammar's entropy on these captions, which no model can go below but by chance."),
    (r"text\.nats_per_token", "text NELBO", "plain", "lower",
     "Upper bound on the model's negative log-likelihood of a held-out caption in nats, padding included (a model that "
     "has learned where captions end pays next to nothing for it), divided by its tokens and its end token alone."),
    (r"text\.bits_per_(char|byte)", "bits per character", "plain", "lower",
     "The same bound in bits divided by characters (or UTF-8 bytes), so that it does not depend on the tokenizer."),
    (r"text\.entropy", "entropy within a text", "plain", None,
     "Entropy in nats of the word frequencies inside one generated text, mean over texts; a model that repeats itself "
     "is low."),
    (r".*\.distinct_1(\[.*\])?", "distinct words", "share", "higher",
     "Share of words in the generated texts that are different."),
    (r".*\.distinct_2(\[.*\])?", "distinct pairs of words", "share", "higher",
     "Share of runs of two words in the generated texts that are different."),
    (r".*\.distinct_4(\[.*\])?", "distinct runs of four words", "share", "higher",
     "Share of runs of four words in the generated texts that are different."),
    (r".*\.distinct_\d(\[.*\])?", "distinct n-grams", "share", "higher",
     "Share of n-grams in the generated texts that are different."),
    (r".*\.duplicates(\[.*\])?", "repeated texts", "share", "lower",
     "Share of generated texts that equal an earlier one. A small grammar repeats itself, too."),
    (r".*\.copied(\[.*\])?", "copied texts", "share", None,
     "Share of generated texts that stand in the training set word by word."),
    (r".*\.longest_copied(\[.*\])?", "longest copy", "plain", None,
     "Longest run of words that the training set holds."),
    (r".*\.longest_copied_share(\[.*\])?", "longest copied share", "share", None,
     "Longest run of words that the training set holds over the length of the text, mean over texts."),
)  # fmt: skip


def define(name: str) -> Definition:
    """The definition that fits a figure's name; an unknown name is labelled by itself and says so."""
    for pattern, label, unit, better, text in RULES:
        if re.fullmatch(pattern, name):
            return Definition(_label(name, label), unit, better, text)
    return Definition(name, "plain", None, "No definition is written for this name; its source says what made it.")


def _label(name: str, label: str) -> str:
    if asked := STUDY.fullmatch(name):
        return f"{asked['criterion']}: {asked['who'] + ', ' if asked['who'] else ''}{label}"
    found = SCENE.fullmatch(name)
    if found:
        part = f", {SLICES[found['slice']]}" if found["slice"] else ""
        return f"{subject(found['subject'])}: {found['attribute']}{part}"
    head = name.rsplit(".", 1)[0] if "[" not in name else name.split("[")[0].rsplit(".", 1)[0]
    return f"{subject(head)} {label}" if head in SUBJECTS and head != "text" and "k-means" not in label else label


def subject(key: str) -> str:
    """The reader's word for the first part of a figure's name."""
    return SUBJECTS.get(key, key)
