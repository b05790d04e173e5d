"""A recipe on text from files to report: every objective trained, sampled and judged, interrupted and gone on with."""

import json
import re
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from discrete.autoregressive import next_token_nll
from eval.blocks import Curve, Tradeoff
from pipelines.config import RecipeError, load_recipe
from pipelines.data.grammar import for_size
from pipelines.errors import PalimpsestError
from pipelines.pipeline import load
from pipelines.runs import reopen_run
from pipelines.sampling import generators
from pipelines.sampling_options import MASKED_SAMPLERS, REMASKING_SAMPLERS
from pipelines.sweep_rows import ROWS, read_rows
from pipelines.text.config import TextSweepStage
from pipelines.text.corpus import Corpus
from pipelines.text.likelihood import cost
from pipelines.text.sampler import TextSampler, document_lengths
from pipelines.text.scorer import Scorer
from pipelines.text.sweep_report import sweep_sections
from pipelines.text.train import TextTask
from tests.conftest import finish, start, wait_for
from tests.pipelines.test_distributed import on_two_ranks

RECIPE = """
[data]
kind = "text"
train = "train.txt"
test = "test.txt"
[stage.tokens]
kind = "text_tokens"
{models}
[stage.sweep]
kind = "text_sweep"
needs = ["tokens", "judge", "ar", {names}]
judge = "judge"
count = 24
length = 32
steps = [4, 8]
bounds = [3.0]
temperatures = [0.7]
top_p = [0.9]
top_k = [5]
[stage.eval]
kind = "text_eval"
needs = ["ar", {names}, "sweep"]
draws = 4
other = [{{ file = "other.txt", detokenise = "wikitext" }}]
"""
MODEL = """
[stage.{name}]
kind = "text_model"
needs = ["tokens"]
length = 32
objective = {objective}
model = {{ dim = 32, layers = 2, heads = 2, time = {time} }}
training = {{ steps = 60, batch = 16, learning_rate = 5e-3, ema = 0.9, validate_every = 20, compile = false }}
"""
OBJECTIVES = {
    "judge": '{ kind = "autoregressive" }',
    "ar": '{ kind = "autoregressive" }',
    "masked": '{ kind = "masked", copies = 2 }',
    "blocks": '{ kind = "blocks", size = 8 }',
    "uniform": '{ kind = "uniform" }',
    "absorbing": '{ kind = "d3pm", steps = 8 }',
    "replacing": '{ kind = "d3pm", steps = 8, transition = "uniform" }',
}
TIMED = ("uniform", "replacing")


def recipe(folder: Path, chosen: Iterable[str] = OBJECTIVES) -> Path:
    models = "".join(
        MODEL.format(name=name, objective=OBJECTIVES[name], time=str(name in TIMED).lower()) for name in chosen
    )
    names = ", ".join(f'"{name}"' for name in chosen if name not in ("ar", "judge"))
    path = folder / "words.toml"
    path.write_text(RECIPE.format(models=models, names=names), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on sentences of the scenes' grammar, killed while it trained."""
    folder = tmp_path_factory.mktemp("text")
    grammar, rng = for_size(32), np.random.default_rng(0)
    for name, count in (("train", 800), ("test", 100), ("other", 20)):
        lines = "\n".join(grammar.caption(grammar.sample_scene(rng), rng) for _ in range(count))
        strange = "\n日本" if name == "other" else ""
        (folder / f"{name}.txt").write_text(lines + strange + "\n", encoding="utf-8")
    run = ("run", recipe(folder), "--out", folder / "runs", "--data", folder)
    process = start(*run)
    wait_for(folder / "runs" / "words" / "masked" / "log.jsonl", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finish(*run)
    return folder / "runs" / "words"


@pytest.fixture(scope="session")
def report(words: Path) -> dict[str, dict]:
    return json.loads((words / "eval" / "report.json").read_text(encoding="utf-8"))["figures"]


@pytest.fixture(scope="session")
def lines(words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run whose documents are single sentences."""
    folder = words.parent.parent
    text = recipe(folder, ("judge", "ar", "masked")).read_text(encoding="utf-8").replace("length = 32", "length = 96")
    path = tmp_path_factory.mktemp("lines") / "lines.toml"
    text = text.replace("count = 24\n", 'count = 24\nsamplers = ["masked_ancestral", "cached"]\nvariants = []\n')
    text = text.replace("draws = 4\n", "draws = 4\nwindows = 6\n")
    path.write_text(text.replace('kind = "text"\n', 'kind = "text"\nseparator = "\\n"\n'), encoding="utf-8")
    finish("run", path, "--out", path.parent, "--data", folder)
    return path.parent / "lines"


def test_charts_hold_the_models_or_one_family_of_samplers(words: Path):
    run = reopen_run(words)
    stage = run.recipe.stage["sweep"]
    assert isinstance(stage, TextSweepStage)
    rows = list(read_rows(run.stage_folder("sweep") / ROWS).values())
    charts = [block for block in sweep_sections("sweep", stage, rows)[1][0].blocks if isinstance(block, Curve)]
    shown = {chart.title.split(", ")[1]: {line.name for line in chart.series} for chart in charts}
    models = {"ar: one by one", "masked: masked_ancestral", "blocks: blocks of 8", "uniform: uniform ancestral"}
    assert shown["models"] == models | {"absorbing: all steps", "replacing: all steps", "held-out text"}
    remasking = {f"masked: {name}" for name in ("masked_ancestral", *REMASKING_SAMPLERS)}
    assert shown["remasking samplers of masked"] == remasking | {"held-out text"}
    swept = {line for lines in shown.values() for line in lines if line.startswith("masked: ")}
    assert swept == {f"masked: {name}" for name in (*MASKED_SAMPLERS, *stage.variants)}
    assert max(map(len, shown.values())) <= 7


def test_documents_are_written_one_at_a_time_and_masked_ones_as_long_as_real_ones(words: Path, lines: Path):
    found = json.loads((lines / "eval" / "report.json").read_text(encoding="utf-8"))["figures"]
    page = (lines / "eval" / "report.html").read_text(encoding="utf-8")
    assert "Each document is read on its own" in page and "the first 6 windows of the text" in page
    assert "6 windows of 96 tokens" in found["ar.text[test].perplexity"]["source"]
    texts = {"ar": "test", "masked": "test|given lengths"}  # where documents end costs the masked model nothing
    assert all(0.3 < found[f"{name}.text[{text}].bits_per_character"]["value"] < 6 for name, text in texts.items())
    assert "upper bound" not in found["masked.text[test|given lengths].perplexity"]["source"]
    assert not [name for name in found if ".above_" in name or ".text[short]" in name]  # unlike quantities
    generate = load(lines)
    texts = {name: generate.texts(12, seed=1, model=name) for name in ("ar", "masked")}
    assert all("\n" not in text for text in (*texts["ar"], *texts["masked"]))
    train = (words.parent.parent / "train.txt").read_text(encoding="utf-8").splitlines()
    lengths = {len(text) for text in texts["masked"]}
    assert len(lengths) > 3 and lengths <= {len(line) for line in train}
    prompt = "a very long line " * 5
    assert all(text.startswith(prompt) for text in generate.texts(2, seed=1, model="masked", prompt=prompt))
    filled = generate.texts(4, seed=1, model="masked", prompt="a [mask:90]")
    assert all(text.startswith("a ") and len(text) == 92 for text in filled)
    with pytest.raises(PalimpsestError, match="ends a document: write one at a time"):
        generate.texts(1, seed=1, model="masked", prompt="a red\nstar")
    rows = [json.loads(line) for line in (lines / "sweep" / "sweep.jsonl").read_text().splitlines()]
    real = next(row for row in rows if row["curve"] == "held-out text")
    documents = (words.parent.parent / "test.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    assert all(any(line[:96] == text for line in documents) for text in real["texts"])


def test_a_packed_window_costs_what_its_documents_cost_alone_in_training_and_in_the_report(lines: Path):
    run = reopen_run(lines)
    corpus, sampler = Corpus.load(run, "ar"), TextSampler.load(run, "ar")
    end_id, text = corpus.tokenizer.end_id, corpus.splits["test"].cut(192)
    ends = (text.ids == end_id).nonzero()[:, 0] + 1
    assert len(ends) > 1
    documents = [part[None].long() for part in text.ids.tensor_split(ends) if len(part)]
    alone = sum(float(next_token_nll(sampler.network, part).sum().detach()) for part in documents)
    packed = cost(sampler.network, sampler.objective, text, 192, draws=1, end_id=end_id)
    assert float(packed.nats) == pytest.approx(alone, rel=1e-4)
    task = TextTask(run, "ar", run.recipe.stage["ar"])
    loss, _ = task.loss(sampler.network, {"x": text.ids[None].long()}, torch.Generator())
    assert 192 * float(loss.detach()) == pytest.approx(alone, rel=1e-4)


def test_letters_that_a_tokenizer_does_not_know_make_the_cost_no_bound(words: Path, report):
    page = (words / "eval" / "report.html").read_text(encoding="utf-8")
    assert re.search("Unknown to the tokenizer of ar, masked, .* are 2 characters of the text", page)
    sources = {text: report[f"masked.text[{text}].perplexity"]["source"] for text in ("test", "other.txt|wikitext")}
    assert "upper bound, " in sources["test"]
    assert "upper bound, unknown characters as one token, " in sources["other.txt|wikitext"]


@pytest.mark.parametrize("folder", ["words", "lines"])
def test_the_judge_prices_each_text_as_it_would_alone(folder: str, request: pytest.FixtureRequest):
    run = reopen_run(request.getfixturevalue(folder))
    judge = Scorer.load(run, "judge")
    tokenizer, network = judge.model.tokenizer, judge.model.network
    real = tokenizer.decode(Corpus.load(run, "judge").splits["test"].ids[:4000].numpy())
    texts = [real[7 * i : 7 * i + 5 + i % 40].replace("\n", " ") + tokenizer.separator for i in range(70)]
    scores, states = judge.read(texts)  # more than one batch, of unequal lengths
    alone = [torch.from_numpy(tokenizer.encode(text).ids).long()[None] for text in texts]
    assert scores.tokens == [ids.shape[1] for ids in alone] and scores.characters == list(map(len, texts))
    with torch.no_grad():
        costs = [next_token_nll(network, ids).sum().item() for ids in alone]
    np.testing.assert_allclose(scores.nats, costs, rtol=1e-4)
    open_texts = [text.removesuffix(tokenizer.separator) if tokenizer.separator else text for text in texts]
    np.testing.assert_allclose(states, judge.read(open_texts)[1], rtol=1e-4, atol=1e-5)  # an end is never read
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)  # knows nothing: every token costs ln V
    scores, _ = judge.read(texts)
    np.testing.assert_allclose(scores.nats, np.array(scores.tokens) * np.log(tokenizer.vocab_size), rtol=1e-5)


def test_the_judge_is_not_among_what_the_report_compares(report):
    assert not [name for name in report if name.startswith("judge.")]


def test_every_objective_trains_and_its_cost_stands_in_the_report(words: Path, report):
    for name in OBJECTIVES:
        for text in ("test", "other.txt|wikitext"):
            if name == "judge":
                continue
            bits = report[f"{name}.text[{text}].bits_per_character"]
            assert 0.5 < bits["value"] < 8 and bits["low"] < bits["value"] < bits["high"]
        losses = [json.loads(line) for line in (words / name / "log.jsonl").read_text().splitlines()]
        costs = [line["bits_per_character"] for line in losses if line["split"] == "validation"]
        assert len(costs) == 3 and costs[-1] < costs[0]  # each step once, whatever was interrupted


def test_a_bound_stands_beside_the_autoregressive_cost_with_a_paired_interval(report):
    ratio = report["masked.text[test].above_ar"]
    cost, bound = (report[f"{name}.text[test].bits_per_character"]["value"] for name in ("ar", "masked"))
    assert ratio["value"] == pytest.approx(bound / cost - 1, rel=1e-9)
    assert "ar.text[test].above_ar" not in report


def test_perplexity_stands_against_entropy_over_steps_and_temperatures_beside_real_text(words: Path):
    run = reopen_run(words)
    stage = run.recipe.stage["sweep"]
    assert isinstance(stage, TextSweepStage)
    rows = list(read_rows(run.stage_folder("sweep") / ROWS).values())
    blocks = sweep_sections("sweep", stage, rows)[1][0].blocks
    charts = {block.title.partition(", ")[2]: block for block in blocks if isinstance(block, Tradeoff)}
    real = next(row for row in rows if row["curve"] == "held-out text")
    for chart in charts.values():
        assert [pair.name for pair in chart.references] == ["held-out text", "training text"]
        assert chart.limit == pytest.approx(real["figures"]["entropy"]["value"] - 0.2)
        pairs = [pair for of in chart.series.values() for pair in of]
        assert all(pair.hollow for pair in pairs if pair.x.value < chart.limit)
    assert set(charts) == {"over temperatures and cuts", "over steps, masked", "over steps, other models"}
    assert {name.split(": ")[0] for name in charts["over steps, other models"].series} == {
        "ar", "blocks", "uniform", "absorbing", "replacing",
    }  # fmt: skip
    ancestral = charts["over steps, masked"].series["masked: masked_ancestral"]
    assert [pair.name for pair in ancestral] == [str(steps) for steps in stage.steps]
    tempered = charts["over temperatures and cuts"].series["masked"]
    assert [float(pair.name) for pair in tempered] == sorted((*stage.temperatures, 1.0))
    assert {pair.name for pair in charts["over temperatures and cuts"].series["masked: top_p"]} == {
        f"p {p:g}" for p in stage.top_p
    }


def test_the_exact_likelihood_of_short_pieces_is_below_its_bound(report):
    exact, bound = (report[f"masked.text[short].{name}_per_token"]["value"] for name in ("nats", "bound"))
    assert 0 < exact < bound and report["ar.text[short].nats_per_token"]["n"] == 64
    assert "uniform.text[short].nats_per_token" not in report


def test_the_sweep_has_a_row_for_every_sampler_and_the_real_text(words: Path, report):
    rows = [json.loads(line) for line in (words / "sweep" / "sweep.jsonl").read_text().splitlines()]
    curves = {row["curve"] for row in rows}
    assert {"held-out text", "ar: one by one", "blocks: blocks of 8", "uniform: uniform ancestral"} <= curves
    assert {"absorbing: all steps", "replacing: all steps"} | {f"masked: {name}" for name in MASKED_SAMPLERS} <= curves
    assert {f"masked: {name}" for name in ("cosine", "square", "maskgit", "blocks")} <= curves
    for row in rows:
        assert all(len(text) > 0 for text in row["texts"]) and row["figures"]["genppl"]["n"] == 24
    of = {(row["curve"], row["steps"], row["temperature"]): row for row in rows if row["group"] != "real"}
    assert of["masked: masked_ancestral", 8, 1.0]["evaluations"] == 8
    assert of["masked: blocks", 2, 1.0]["evaluations"] == of["masked: maskgit", 8, 1.0]["evaluations"] == 8
    laws = [of["masked: masked_ancestral", 8, 1.0], *(of[f"masked: {name}", 8, 1.0] for name in ("cosine", "square"))]
    assert len({row["texts"][0] for row in laws}) == 3  # the same draws, revealed by other schedules
    assert "ar.sweep.genppl[temperature: ar: top_p 0.9|steps=16|temperature=1|n=24]" in report
    assert of["ar: one by one", 16, 1.0]["evaluations"] == 32 and of["ar: one by one", 16, 1.0]["passes"] == 1
    assert of["masked: cached", 8, 1.0]["texts"] == of["masked: masked_ancestral", 8, 1.0]["texts"]
    assert of["masked: cached", 8, 1.0]["evaluations"] <= 8
    assert any(name.startswith("masked.sweep.genppl[steps: masked: cached|steps=4") for name in report)
    assert all(("seconds" in row["figures"]) == (row["group"] != "real") for row in rows)
    assert len((words / "eval" / "sweep.csv").read_text(encoding="utf-8").splitlines()) == 1 + len(rows)


def test_texts_hold_their_prompt_and_go_on_beyond_the_trained_length(words: Path):
    run = load(words)
    for model in ("ar", "masked", "blocks"):
        texts = run.texts(2, seed=0, model=model, prompt="a large red", length=96)
        assert all(text.startswith("a large red") and len(text) == 96 for text in texts)
    for model in ("uniform", "absorbing", "replacing"):
        assert all(text.startswith("a large") for text in run.texts(2, seed=0, model=model, prompt="a large"))


def test_gaps_are_filled_and_nothing_else_changes(words: Path):
    run = load(words)
    for sampler in ("confidence", "remask_rescale", "entropy_bound", "first_hitting"):
        (text,) = run.texts(1, seed=1, model="masked", prompt="a [mask:5] circle on a [mask] ", sampler=sampler)
        assert re.match(r"a .{5} circle on a . ", text, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("changes", "words_of_error"),
    [
        ({"model": "masked", "prompt": "a" * 40}, "40 tokens, but the text is to have 32"),
        ({"model": "ar", "prompt": "a [mask] circle"}, "writes behind a prompt alone"),
        ({"model": "ar", "prompt": "a red[mask:9]"}, "writes behind a prompt alone"),
        ({"model": "ar", "steps": 3}, "steps: no use to a model of kind 'autoregressive'"),
        ({"model": "masked", "sampler": "confidence", "eta": 0.9}, "eta: no use to .* that writes with 'confidence'"),
        (
            {"model": "masked", "sampler": "entropy_bound", "steps": 8},
            "steps: no use to .* writes with 'entropy_bound'",
        ),
        ({"model": "masked", "choice_temperature": 4.5}, "choice_temperature: no use .*'masked_ancestral'"),
        ({"model": "masked", "sampler": "confidence", "choice_temperature": -4.0}, "choice_temperature is -4.0"),
        ({"model": "masked", "guidance": 3.0}, "guidance: no use to a model of kind 'masked'"),
        ({"model": "masked", "sampler": "cachd"}, "did you mean 'cached'"),
        ({"model": "masked", "block": 7}, "blocks of 7 do not divide a length of 32"),
        ({"model": "uniform", "temperature": 0.5}, "temperature: no use to a model of kind 'uniform'"),
        ({"model": "ar", "sampler": "confidence"}, "does not write with 'confidence'; it can use one_by_one"),
        ({"model": "blocks", "sampler": "entropy_bound"}, "does not write with 'entropy_bound'"),
        ({"model": "blocks", "block": 4}, "block: no use to a model of kind 'blocks'"),
        ({"model": "masked", "prompt": "日本"}, "characters that the training text does not have"),
        ({"model": "masked", "prompt": "[mask:99]"}, r"gaps of the prompt have \[99\] tokens"),
        ({"model": "tokens"}, "is of kind 'text_tokens'"),
        ({"model": "masked", "length": -5}, "length -5"),
        ({"model": "blocks", "length": 33}, "blocks of 8 do not divide a length of 33"),
        ({"model": "masked", "sampler": "entropy_bound", "length": 64}, "chooses its own steps"),
        ({"model": "absorbing", "steps": 9}, "chain of 8 steps"),
        ({"model": "masked", "temperature": 0.0}, "temperature is 0.0"),
        ({"model": "masked", "top_p": 1.5}, "top_p 1.5"),
        ({"model": "masked", "grid": "karras"}, "a masked model knows no such thing"),
    ],
)
def test_bad_input_says_both_values_and_the_remedy(words: Path, changes, words_of_error: str):
    with pytest.raises((PalimpsestError, ValueError), match=words_of_error):
        load(words).texts(1, seed=0, **changes)


@pytest.mark.parametrize("model", ["ar", "masked", "blocks", "uniform"])
def test_what_is_known_must_fit_the_tokens(words: Path, model: str):
    sampler = TextSampler.load(reopen_run(words), model)
    x, known = torch.zeros(2, 32, dtype=torch.int64), torch.zeros(2, 32, dtype=torch.bool)
    known[:, :3] = True
    settings = sampler.usual_settings()
    with pytest.raises(PalimpsestError, match=r"shape \(2, 3\), but the tokens have \(2, 32\)"):
        sampler.fill(x, known[:, :3], generators(["", ""], 0), settings)
    with pytest.raises(PalimpsestError, match=r"known tokens \[99\] are outside the vocabulary, which has 0 to "):
        sampler.fill(x.masked_fill(known, 99), known, generators(["", ""], 0), settings)
    uneven = known.clone()
    uneven[1, :5] = True
    if model == "ar":
        with pytest.raises(PalimpsestError, match="ends at different places"):
            sampler.fill(x, uneven, generators(["", ""], 0), settings)
    else:
        made = sampler.fill(x, uneven, generators(["", ""], 0), settings).ids
        assert not made[uneven].any()


def test_texts_do_not_depend_on_how_many_are_written_at_once(words: Path, monkeypatch: pytest.MonkeyPatch):
    whole = load(words).texts(5, seed=3, model="masked", length=40)
    monkeypatch.setattr("pipelines.pipeline.AT_ONCE", 2)
    assert load(words).texts(5, seed=3, model="masked", length=40) == whole


def test_steps_follow_what_is_filled_in_at_a_time(words: Path):
    sampler = TextSampler.load(reopen_run(words), "masked")
    asked = {None: 16, 4: 2, 20: 10, 64: 4}  # beyond 32 tokens the text goes by blocks of 8
    assert {length: sampler.usual_settings(length).steps for length in asked} == asked
    assert sampler.usual_settings(32, 16).steps == 8


def test_models_that_write_all_at_once_refuse_longer_texts_than_they_read(words: Path):
    generate = load(words)
    for model in ("uniform", "absorbing", "replacing"):
        with pytest.raises(PalimpsestError, match=r"to have 40 tokens, but this model .* on 32 and writes"):
            generate.texts(1, seed=0, model=model, length=40)
    assert len(generate.texts(1, seed=0, model="ar", length=40)[0]) >= 40


def test_first_hitting_reveals_one_token_a_call_unless_steps_are_asked_for(words: Path):
    sampler = TextSampler.load(reopen_run(words), "masked")
    usual = sampler.usual_settings(sampler="first_hitting")
    assert usual.sampler == "first_hitting" and usual.steps == sampler.length
    written = sampler.write(2, generators([""] * 2, 0), usual)
    assert written.evaluations == sampler.length
    assert sampler.usual_settings().steps == sampler.length // 2


def test_greedy_draws_keep_the_order_of_confidence(words: Path):
    """Cut to the likeliest token, every law is sure of itself: the order must come from the model's own."""
    generate = load(words)
    greedy = generate.texts(3, seed=0, model="masked", sampler="confidence", steps=32, top_k=1)
    cold = generate.texts(3, seed=0, model="masked", sampler="confidence", steps=32, temperature=1e-4)
    assert greedy == cold and len(set(greedy)) == 1


def test_lengths_of_documents_leave_empty_ones_out():
    ids = torch.tensor([9, 4, 9, 9, 5, 6, 9, 3])
    found = document_lengths(ids, 9)
    assert found is not None and found.tolist() == [2, 3]
    assert document_lengths(ids, None) is None


def test_a_model_refuses_another_tokenizer(words: Path, tmp_path: Path):
    other = tmp_path / "words"
    shutil.copytree(words, other)
    path = other / "masked" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "tokenizer": "0" * 64}))
    with pytest.raises(PalimpsestError, match="trained with the tokenizer 000000000000, but"):
        load(other).texts(1, seed=0, model="masked")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stage.masked.length=1", "length is 1, expected at least 2"),
        ("stage.blocks.objective.size=7", "blocks of 7 do not divide a length of 32"),
        ("stage.masked.needs=[]", "needs a stage of kind 'text_tokens'"),
        ("stage.sweep.samplers=['greedy']", "'greedy'.* are unknown"),
        ("stage.sweep.judge='masked'", "judge is 'masked'.*autoregressive"),
        ("stage.sweep.length=64", "length is 64, but judge was trained on 32"),
        ("stage.ar.training.keep='first'", "keep"),
        ("stage.masked.objective.copies=0", "copies is 0"),
        ("data.valid_share=1.5", "valid_share is 1.5"),
        ("data.separator='; '", "the objective 'blocks': documents are read apart by"),
        ("stage.sweep.length=30", "length is 30, which 4 blocks do not divide"),
        ("stage.sweep.bounds=[-1.0]", "bound is -1.0, expected 0 nats"),
        ("stage.masked.model.time=true", "'cached', but stage.masked.model.time is true"),
        ("stage.ar.model.time=true", "no time to tell the network: write time = false"),
        ("stage.sweep.needs=['tokens', 'judge']", "needs a text model beside its judge 'judge'"),
        ("stage.eval.needs=['sweep']", "names no text model in `needs`"),
        ("stage.sweep.top_p=[1.5]", "top_p .1.5.* expected shares up to 1"),
        ("stage.masked.training.optimizer='sgd'", "optimizer"),
    ],
)
def test_recipes_of_text_are_checked_before_anything_runs(tmp_path: Path, change: str, message: str):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe(tmp_path), [change])


def test_a_missing_text_file_is_named(words: Path, tmp_path: Path):
    text = finish("run", recipe(tmp_path), "--out", tmp_path / "runs", "--data", tmp_path, code=2)
    assert "There is no text at" in text and "train.txt" in text
    assert not (tmp_path / "runs" / "words" / "tokens").exists()


def test_a_separator_that_the_text_does_not_hold_is_named(words: Path, tmp_path: Path):
    path = recipe(tmp_path, ("judge", "ar", "masked"))
    changed = path.read_text(encoding="utf-8").replace('kind = "text"\n', 'kind = "text"\nseparator = "<|end|>"\n')
    path.write_text(changed, encoding="utf-8")
    text = finish("run", path, "--out", tmp_path / "runs", "--data", words.parent.parent, code=2)
    assert "The training text holds no separator '<|end|>'" in " ".join(text.split())


def test_held_out_text_is_compared_with_its_other_half(words: Path):
    rows = [json.loads(line) for line in (words / "sweep" / "sweep.jsonl").read_text().splitlines()]
    held = next(row for row in rows if row["curve"] == "held-out text")
    assert 0 < held["figures"]["mauve"]["value"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ar", "masked", "uniform"])
def test_two_processes_train_as_one_does(words: Path, tmp_path: Path, name: str):
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "tokens").symlink_to(words / "tokens")
    training = f"stage.{name}.training"
    sets = (f"{training}.steps=6", f"{training}.validate_every=6", f"{training}.bf16=false")
    sets += (f"{training}.optimizer=muon",) if name == "masked" else ()
    on_two_ranks("train", name, words / "recipe.json", "--out", tmp_path, "--data", words.parent.parent, "--set", *sets)
    assert json.loads((folder / name / "manifest.json").read_text())["steps"] == 6
    if name == "ar":  # without chance, two processes take the very steps of one
        one = tmp_path / "one"
        (one / "words").mkdir(parents=True)
        (one / "words" / "tokens").symlink_to(words / "tokens")
        finish("train", name, words / "recipe.json", "--out", one, "--data", words.parent.parent, "--set", *sets)
        weights = [load_file(path / "words" / name / "model.safetensors") for path in (tmp_path, one)]
        two, alone = (torch.cat([value.flatten() for _, value in sorted(state.items())]) for state in weights)
        assert (two - alone).norm() < 1e-3 * alone.norm()


def test_texts_from_anywhere_are_judged_by_a_model_of_a_run(words: Path, tmp_path: Path):
    real = (words.parent.parent / "test.txt").read_text(encoding="utf-8").splitlines()
    train = words.parent.parent / "train.txt"
    (tmp_path / "like.txt").write_text("\n".join(train.read_text(encoding="utf-8").splitlines()[:40]), encoding="utf-8")
    (tmp_path / "dull.json").write_text(json.dumps([real[0]] * 40), encoding="utf-8")
    sets = [tmp_path / "like.txt", tmp_path / "dull.json"]
    finish("eval", "--texts", *sets, "--reference", words.parent.parent / "test.txt", "--train", train,
           "--scorer", words / "judge", "--out", tmp_path / "scores")  # fmt: skip
    found = json.loads((tmp_path / "scores" / "report.json").read_text(encoding="utf-8"))["figures"]
    scorer = Scorer.load(reopen_run(words), "judge")
    nats = np.asarray(scorer.read([real[0]] * 2)[0].nats)
    dull = found[f"dull.json.nats_per_character[{scorer.name}|n=40]"]
    assert dull["value"] == pytest.approx(nats[0] / len(real[0]))
    assert found[f"dull.json.mauve[{scorer.name}|k=4|n=40/40]"]["value"] < 0.5
    page = (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")
    assert "dull.json" in page and "may be ranked" in page


def test_a_masked_text_is_shown_by_when_its_tokens_were_revealed(words: Path):
    rows = [json.loads(line) for line in (words / "sweep" / "sweep.jsonl").read_text().splitlines()]
    timed = [row for row in rows if row.get("timed")]
    assert {row["model"] for row in timed} == {"masked"}
    for row in timed:
        assert "".join(piece for piece, _ in row["timed"]) == row["texts"][0]
        times = {time for _, time in row["timed"]}
        assert 0 < min(times) and max(times) <= 1
        assert row["sampler"] != "masked_ancestral" or len(times) > 1
    page = (words / "eval" / "report.html").read_text(encoding="utf-8")
    assert "The stronger its shade, the later a token was revealed" in page and '<i class="r5">' in page
