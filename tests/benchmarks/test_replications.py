"""The machinery of the replications on tiny models: what is run, on which data, what is kept, what is said about it."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nlrl.benchmarks.replications import (
    cli,
    corpus,
    diff,
    driver,
    figures,
    needles,
    ngpt,
    outliers,
    plan,
    sources,
    summary,
    train,
)
from nlrl.benchmarks.replications import report as report_module
from nlrl.benchmarks.replications.claims import Choice
from nlrl.benchmarks.replications.experiment import Arm, Claim, Report, Result, Run, check_matched
from nlrl.benchmarks.replications.workers import Bench, Failed, Here, Setup, Workers
from nlrl.errors import NLRLError

torch.set_num_threads(1)
GOLDEN = Path(__file__).parents[1] / "golden" / "replications"
TINY = '''
from nlrl.backbones import NGPTConfig, NGPTForCausalLM, TransformerConfig, TransformerForCausalLM
from nlrl.benchmarks.replications.experiment import Arm, Claim

def transformer(vocab, context):
    return TransformerForCausalLM(TransformerConfig(tie_word_embeddings=False, **sizes(vocab)))

def ngpt(vocab, context):
    return NGPTForCausalLM(NGPTConfig(**sizes(vocab)))

def sizes(vocab):
    return dict(vocab_size=vocab, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)

def seen(model, data, device):
    return {"training": model.training, "context": data.context}

def claim():
    """Its name is that of the module, as for every claim."""
    arms = (
        Arm("transformer", "Transformer", transformer, (4e-3, 8e-3), extra={}),
        Arm("student", "Student", ngpt, (4e-3,), optimizer="normalised", teacher="transformer",
            extra={"unmatched": "one scale a token"}),
    )
    return Claim("tiny_claim", arms, (16,), 256, 64, measures={"seen": seen}, seeds=(0, 1), extensions=1)
'''


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory):
    """Made-up prose: few words, so that a model of 16 channels learns something."""
    rng, words = np.random.default_rng(0), ["the cat", "sat on", "a mat", "The magic number of", "a dog", "is", "old"]
    texts = [("prose", " ".join(rng.choice(words, 60)) + f" {i}.") for i in range(900)]
    path = tmp_path_factory.mktemp("corpus") / "corpus.npz"
    corpus.write(path, texts[:700], texts[700:])
    return path


@pytest.fixture
def data(corpus_file):
    return corpus.load(corpus_file, 256, torch.device("cpu"))


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The name of a claim that worker processes can import, too."""
    (tmp_path / "tiny_claim.py").write_text(TINY)
    monkeypatch.syspath_prepend(tmp_path)
    return "tiny_claim"


def never(vocab, context):
    raise AssertionError("no model is needed here")


def result(arm="a", context=16, seed=0, lr=1e-3, loss=1.0, curve=None, **changes):
    curve = curve or [[0, 0, None, 8.0], [10, 640, 2.0, loss]]
    return Result(Run(arm, context, seed, lr), 100, curve, {}, 1.0, "cpu", **changes)


def claim_of(*arms, **changes):
    return replace(Claim("c", arms, (16,), 640, 64), **changes)


def run_all(claim, losses, results=()):
    """What the plan asks for until it is content, `losses(run)` being what runs give."""
    results, order = list(results), []
    while todo := plan.missing(claim, results):
        order.append(todo[0])
        run = todo[0]
        results.append(result(run.arm, run.context, run.seed, run.lr, losses(run)))
    return order


# -- plan --------------------------------------------------------------------------------------------------------------
def test_a_grid_is_extended_beyond_its_best_edge_but_not_for_ever():
    arm = Arm("a", "A", never, (1e-3, 2e-3))
    higher_is_better = run_all(claim_of(arm), lambda run: 1 / run.lr)
    assert [run.lr for run in higher_is_better if run.seed == 0] == [1e-3, 2e-3, 4e-3, 8e-3]
    assert {run.lr for run in higher_is_better if run.seed} == {8e-3}
    lower_is_better = run_all(claim_of(arm), lambda run: run.lr)
    assert sorted(run.lr for run in lower_is_better if run.seed == 0) == [2.5e-4, 5e-4, 1e-3, 2e-3]
    inner = run_all(claim_of(replace(arm, lrs=(1e-3, 2e-3, 4e-3))), lambda run: abs(run.lr - 2e-3))
    assert [(run.lr, run.seed) for run in inner] == [(1e-3, 0), (2e-3, 0), (4e-3, 0), (2e-3, 1), (2e-3, 2)]


def test_a_run_that_diverged_loses_the_search():
    arm = Arm("a", "A", never, (1e-3, 2e-3))
    order = run_all(claim_of(arm), lambda run: None if run.lr > 1e-3 else run.lr)
    assert {run.lr for run in order if run.seed} == {2.5e-4}


def test_a_student_waits_for_its_teachers_search():
    arms = Arm("t", "T", never, (1e-3,)), Arm("s", "S", never, (1e-3,), teacher="t")
    claim = claim_of(*arms, extensions=0)
    assert {run.arm for run in plan.missing(claim, [])} == {"t"}
    assert {run.arm for run in plan.missing(claim, [result("t")])} == {"t", "s"}


def test_parameters_must_match(data):
    for claim in (ngpt.claim(), diff.claim()):
        for by_arm in driver.sizes(claim, 4096).values():
            assert 4e6 < by_arm["transformer"] < 9e6
    arms = Arm("a", "A", never, (1e-3,)), Arm("b", "B", never, (1e-3,))
    check_matched(claim_of(*arms), 16, {"a": 1000, "b": 1019})
    with pytest.raises(NLRLError, match=r"b has 1,021 parameters, \+2.1% of a's"):
        check_matched(claim_of(*arms), 16, {"a": 1000, "b": 1021})
    check_matched(claim_of(arms[0], replace(arms[1], extra={"unmatched": "why"})), 16, {"a": 1000, "b": 5000})


# -- data --------------------------------------------------------------------------------------------------------------
def test_the_corpus_keeps_documents_apart(corpus_file, data):
    described = corpus.describe(corpus_file)
    assert described["documents"] == 900
    assert described["tokens"] == len(data.train) + len(data.held_out)
    assert described["vocabulary"] == data.vocab
    assert 5 < (data.held_out == corpus.BOS).sum() < 40
    texts = {
        data.tokenizer.decode(part.tolist())
        for part in data.held_out.tensor_split((data.held_out == 1).nonzero()[:, 0])
    }
    everything = data.tokenizer.decode(data.train.tolist())
    assert not any(text.strip() and text.strip() in everything for text in texts)
    assert data.tokenizer.decode(data.train[1:40].tolist()) in " ".join(sorted({everything}))
    with pytest.raises(NLRLError, match="is no corpus"):
        corpus.load(Path(__file__), 16, "cpu")


def test_paragraphs_that_occur_twice_are_kept_once():
    long = "A paragraph that is long enough to be told apart from headings and other short things. " * 5
    kept = corpus._unique([("a", f"{long}one\n\n{long}two"), ("b", f"{long}one\n\n{long}three")], 0)
    assert sorted(text.count("one") for _, text in kept) == [0, 1]


def test_formats_become_text():
    page = '.TH LS 1\n.SH NAME\nls \\- list \\fBall\\fR files\n.sp 2\n.\\" a comment\n.B ls\n'
    assert sources.roff(page).split() == "NAME ls - list all files ls".split()  # noqa: SIM905
    assert sources.pod("code;\n\n=head1 NAME\n\nA B<bold> C<< x > y >>.\n\n=cut\n\nmore code;").split("\n\n") == [
        "NAME", "A bold x > y."
    ]  # fmt: skip
    assert sources.html("<head><title>t</title></head><p>one &amp; two</p><script>no</script>").strip() == "one & two"
    assert sources.python_docs('"""Top."""\ndef f():\n    """Does f."""\n    return "no"\n') == "Top.\n\nf: Does f."


def test_every_arm_reads_the_same_rows_in_the_same_order(data):
    claim = claim_of(contexts=(256,), tokens=20 * 1024, batch_tokens=1024, mix=needles.mix, mix_share=0.3)
    one, two, other = (train.Rows(claim, data, seed) for seed in (0, 0, 1))
    batches = [[rows.batch(step) for step in range(20)] for rows in (one, two, other)]
    for ours, theirs in zip(*batches[:2], strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert not torch.equal(batches[0][0].tokens, batches[2][0].tokens)
    mixed = [row for batch in batches[0] for row in batch.weights if (row == needles.ANSWER_WEIGHT).any()]
    assert 0.15 < len(mixed) / 80 < 0.45


def test_rows_are_read_once_an_epoch(data):
    blocks = len(data.train) // 256
    rows = train.Rows(claim_of(contexts=(256,), tokens=blocks * 256, batch_tokens=256), data, 0)
    assert sorted(rows.blocks.flatten().tolist()) == list(range(blocks))
    batch = rows.batch(3)
    start = int(rows.blocks[3, 0]) * 256
    assert torch.equal(batch.tokens[0], data.train[start : start + 256].long())
    assert batch.weights[0, 0] == 0
    assert (batch.weights[0, 1:] == 1).all()


# -- needles -----------------------------------------------------------------------------------------------------------
class Knows:
    """A model that looks the numbers up, except those of `ignored` cities; tokens are its hidden states."""

    def __init__(self, words, vocab, ignored=()):
        self.words, self.vocab, self.ignored = words, vocab, ignored

    def hidden(self, tokens, positions):
        next_tokens = torch.zeros_like(tokens)
        for row, out in zip(tokens, next_tokens, strict=True):
            ids = row.tolist()
            for city, name in enumerate(self.words.cities):
                start = [*self.words.before, *name, *self.words.between]
                places = [i for i in range(len(ids)) if ids[i : i + len(start)] == start]
                for place in places:
                    for digit in range(needles.DIGITS):
                        at = place + len(start) + digit
                        out[at - 1] = 0 if city in self.ignored else ids[places[0] + len(start) + digit]
        return next_tokens[..., None].float()

    def logits(self, hidden):
        return torch.nn.functional.one_hot(hidden[..., 0].long(), self.vocab).float()


def test_needles_are_found_by_who_looks_them_up(data, monkeypatch):
    monkeypatch.setattr(needles, "PROBE_ROWS", 3)
    monkeypatch.setattr(needles, "CELLS", ((1, 1), (4, 2)))
    words = needles.Words.of(data.tokenizer)
    found = needles.retrieval(Knows(words, data.vocab), data, "cpu")["cells"]
    assert [(c["needles"], c["asked"], c["depth"], c["accuracy"]) for c in found] == [
        (n, r, depth, 1.0) for n, r in ((1, 1), (4, 2)) for depth in needles.DEPTHS
    ]
    nothing = needles.retrieval(Knows(words, data.vocab, range(len(needles.CITIES))), data, "cpu")["cells"]
    assert {c["accuracy"] for c in nothing} == {0.0}


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_the_first_asked_needle_lies_at_its_depth(data, depth):
    rng, words = np.random.default_rng(3), needles.Words.of(data.tokenizer)
    row = needles.probe(rng, words, data.held_out.numpy(), 256, 4, 2, depth)
    assert len(row.tokens) == len(row.weights) == 256
    assert row.answers.shape == (2, needles.DIGITS)
    assert row.answers.max() == 255
    question = row.tokens[: row.answers[0, 0]][-len(words.line(0, np.zeros(3, int))) + needles.DIGITS :]
    starts = [i for i in range(256) if row.tokens[i : i + len(question)].tolist() == question.tolist()]
    assert len(starts) == 2, "the needle and the question"
    line = len(words.line(0, np.zeros(3, int)))
    hay, others = 256 - 6 * line, [starts[0] - n * line for n in range(4)]
    assert round(depth * hay) in others, "as much text before it as its depth says, and whole needles"
    needle = row.tokens[starts[0] + len(question) :][: needles.DIGITS]
    assert needle.tolist() == row.tokens[row.answers[0]].tolist()
    assert (row.weights[row.answers] == needles.ANSWER_WEIGHT).all()


def test_training_rows_never_ask_for_a_city_twice(data):
    tokens, weights = needles.mix(replace(data, context=512), 20, np.random.default_rng(0))
    assert tokens.shape == weights.shape == (20, 512)
    words = needles.Words.of(data.tokenizer)
    for row, weight in zip(tokens, weights, strict=True):
        text = row.tolist()
        named = [sum(text[i : i + len(c)] == c for i in range(512)) for c in words.cities]
        assert set(named) <= {0, 2}
        assert (weight == needles.ANSWER_WEIGHT).sum() == needles.DIGITS * sum(n == 2 for n in named)


# -- outliers ----------------------------------------------------------------------------------------------------------
def test_outliers_are_those_of_the_plain_formulas(data, monkeypatch):
    monkeypatch.setattr(outliers, "TOKENS", 64)
    monkeypatch.setattr(outliers, "STRIDE", 1)
    data = replace(data, context=32)
    model = diff._transformer(data.vocab, 32).eval()
    found = outliers.outliers(model, data, "cpu")
    rows = data.validation_rows(64).long()
    outputs, scores = [], []
    x = model.embed_tokens(rows)
    from nlrl.backbones.attention import context
    from nlrl.backbones.rotary import frequencies, rotary

    shared = context(torch.arange(32).expand(2, 32), frequencies(32, model.config.rope_parameters, x))
    with torch.no_grad():
        for layer in model.layers:
            qkv = layer.attention.qkv(layer.attention_norm(x)).unflatten(-1, (-1, 32))
            query, key = (
                rotary(part, shared.cos, shared.sin, interleaved=False) for part in qkv[:, :, :16].chunk(2, 2)
            )
            score = torch.einsum("bihd,bjhd->bhij", query, key) / math.sqrt(32)
            scores.append(score[..., torch.ones(32, 32).tril() > 0].flatten())
            x = layer(x, shared)
            outputs.append(x.flatten())
    for name, values in (("hidden", torch.cat(outputs)), ("scores", torch.cat(scores))):
        wanted = values.abs().sort(descending=True).values
        assert found[name]["top"] == pytest.approx({str(n): float(wanted[n - 1]) for n in outliers.TOPS}, rel=1e-5)
        assert found[name]["median"] == pytest.approx(float(wanted.median()), rel=1e-5)


# -- runs --------------------------------------------------------------------------------------------------------------
def test_training_lowers_the_validation_loss(tiny, corpus_file):
    claim = replace(Choice(tiny, steps=60).claim())
    rows = train.Rows(claim, corpus.load(corpus_file, 16, torch.device("cpu")), 0)
    model, found = train.train(claim, Run("transformer", 16, 0, 8e-3), rows)
    steps, tokens, _, losses = zip(*found.curve, strict=True)
    assert steps[-1] == 60
    assert tokens[-1] == 60 * 64
    assert losses[-1] < losses[0] - 0.5
    assert found.measures == {"seen": {"training": False, "context": 16}}
    assert found.params == sum(p.numel() for p in model.parameters())
    again = train.train(claim, Run("transformer", 16, 0, 8e-3), rows)[1]
    assert again.curve == found.curve


def test_a_quick_trial_is_small_and_whole():
    whole, quick = Choice("ngpt").claim(), Choice("ngpt", quick=True).claim()
    assert (len(quick.contexts), len(quick.seeds), quick.extensions, quick.steps) == (1, 1, 0, 40)
    assert [len(arm.lrs) for arm in quick.arms] == [2, 2]
    assert Choice("ngpt", steps=7).claim().tokens == 7 * whole.batch_tokens
    with pytest.raises(NLRLError, match="no claim 'nothing'"):
        Choice("nothing").claim()


def test_warm_up_is_for_those_who_want_it():
    arm = Arm("a", "A", never, (1e-3,))
    warm, cold = (train.Schedule.of(replace(arm, optimizer=kind), 1e-3, 100) for kind in ("adamw", "normalised"))
    assert warm(0) == pytest.approx(1e-4)
    assert cold(0) == 1e-3
    assert max(warm(step) for step in range(100)) < 1e-3
    assert warm(99) == cold(99) < 1e-6


def test_a_killed_call_goes_on_with_what_is_missing(tiny, corpus_file, tmp_path, capsys):
    out, command = (
        tmp_path / "out",
        [tiny, "--out", str(tmp_path / "out"), "--corpus", str(corpus_file), "--device", "cpu"],
    )
    out.mkdir()
    file, setup = out / "replications_tiny_claim.json", Setup(corpus_file, "cpu", compiled=False)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt), Here(setup) as here:
        driver.replicate([book_of(tiny, corpus_file, out)], here, say=lambda line: stop_after(said, line, 2))
    first = Report.read(file)
    assert len(first.results) == 2
    assert first.missing
    assert cli.main(command) == 0
    last = Report.read(file)
    assert last.missing == []
    assert [r.to_json() for r in last.results[:2]] == [r.to_json() for r in first.results]
    assert [r.session for r in last.results[:3]] == [0, 0, 1]
    runs = [r.run for r in last.results]
    assert len(runs) == len(set(runs))
    assert {(r.arm, r.seed) for r in runs} == {(a, s) for a in ("transformer", "student") for s in (0, 1)}
    assert {(t.arm, t.context) for t in last.timings} == {("transformer", 16), ("student", 16)}
    assert all(t.eager > 0 and t.compiled is None for t in last.timings)
    assert cli.main(command) == 0
    assert Report.read(file).results == last.results, "nothing was left to do"
    assert cli.main([*command, "--quick"]) == 1
    assert "was made with other settings" in capsys.readouterr().err


def test_nothing_is_started_when_time_is_up(tiny, corpus_file, tmp_path):
    book = book_of(tiny, corpus_file, tmp_path)
    with Here(Setup(corpus_file, "cpu", compiled=False)) as here:
        driver.replicate([book], here, deadline=0, say=lambda _: None)
    report = Report.read(book.path)
    assert report.results == report.timings == []
    assert [run.lr for run in report.missing] == [4e-3, 8e-3]


def test_one_failure_does_not_stop_the_rest(tiny, corpus_file, tmp_path, monkeypatch):
    import tiny_claim  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(tiny_claim, "ngpt", None)
    book = book_of(tiny, corpus_file, tmp_path)
    with Here(Setup(corpus_file, "cpu", compiled=False)) as here:
        driver.replicate([book], here, say=lambda _: None)
    report = Report.read(book.path)
    assert {(r.run.arm, r.run.seed) for r in report.results} == {("transformer", 0), ("transformer", 1)}
    assert [run.arm for run in report.missing] == ["student"]
    assert "NoneType" in report.sessions[0]["failed"][0]["error"]


def test_worker_processes_give_what_this_one_gives(tiny, corpus_file, tmp_path):
    setup, choice = Setup(corpus_file, "cpu", compiled=False), Choice(tiny)
    runs = [Run("transformer", 16, seed, 4e-3) for seed in (0, 1)]
    with Workers(setup, 1) as workers:
        found = {}
        for run in runs:
            workers.submit(0, ("run", choice, run, None, tmp_path / f"{run.seed}.pt"), run)
            found |= {tag: answer for _, tag, answer in workers.answers()}
        workers.submit(0, ("run", choice, Run("nobody", 16, 0, 1.0), None, None))
        [(_, _, failure)] = workers.answers()
    assert isinstance(failure, Failed)
    bench = Bench(setup)
    for run in runs:
        assert found[run].curve == bench.run(choice, run, None, None).curve
        assert (tmp_path / f"{run.seed}.pt").exists()


def book_of(name: str, corpus_file: Path, out: Path) -> driver.Book:
    return driver.Book(Choice(name), out, corpus.describe(corpus_file), driver.session_of("a test", "cpu", 0))


def stop_after(said: list, line: str, count: int) -> None:
    said.append(line)
    if len(said) == count:
        raise KeyboardInterrupt


# -- what is said ------------------------------------------------------------------------------------------------------
def test_steps_to_equal_loss():
    control = result(curve=[[0, 0, None, 8.0], [10, 640, 5.0, 4.0], [20, 1280, 3.0, 3.0]])
    faster = result(curve=[[0, 0, None, 8.0], [10, 640, 5.0, 2.0], [20, 1280, 3.0, 1.0]])
    assert summary.steps_to(faster.curve, 3.0) == pytest.approx(10 * 5 / 6)
    assert summary.step_ratio(faster, control) == pytest.approx(20 / (10 * 5 / 6))
    assert summary.step_ratio(control, faster) == pytest.approx((10 * 5 / 6) / 20), "as far as the slower one comes"
    assert summary.step_ratio(control, control) == 1
    assert summary.step_ratio(result(curve=[[0, 0, None, 8.0], [10, 640, None, None]]), control) == 0


def test_the_best_rate_and_its_seeds_are_what_counts():
    report = Report.read(GOLDEN / "replications_ngpt.json")
    found = summary.Summary(report)
    losses = found.searched("ngpt", 64)
    assert found.best_lr("ngpt", 64) == min(losses, key=lambda lr: losses[lr])
    assert [r.run.seed for r in found.runs("ngpt", 64)] == [0, 1]
    assert found.at_edge("ngpt", 64) == (found.best_lr("ngpt", 64) in (min(losses), max(losses)))
    ours, theirs = found.runs("ngpt", 64), found.runs("transformer", 64)
    assert found.gaps("ngpt", 64).values == tuple(a.loss - b.loss for a, b in zip(ours, theirs, strict=True))
    assert f"{found.losses('ngpt', 64):.2f}".startswith(f"{(ours[0].loss + ours[1].loss) / 2:.2f} (")


@pytest.mark.parametrize("name", ["ngpt", "diff"])
def test_pages_hold_what_the_results_say(name, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(report_module, "write_png", lambda chart, path: drawn.update({path.name: chart.to_dict()}))
    file = GOLDEN / f"replications_{name}.json"
    page = report_module.write(file, tmp_path).read_text()
    report = Report.read(file)
    found = summary.Summary(report)
    for arm, label in found.labels.items():
        for context in found.contexts:
            assert f"| {label} | {context} | {found.runs(arm, context)[0].params:,} |" in page
            assert f"{found.losses(arm, context):.4f}" in page
    assert all(f"({picture})" in page for picture in drawn)
    assert set(drawn) >= {f"{name}_loss.png", f"{name}_learning_rates.png"}
    assert report.sessions[0]["command"] in page
    assert "Incomplete" not in page
    if name == "diff":
        tops = found.measured("diff_v1", 256, "outliers")
        assert f"{(tops[0]['scores']['top']['10'] + tops[1]['scores']['top']['10']) / 2:.2f}" in page
        assert "diff_needles.png" in drawn


def test_pages_say_what_is_missing_or_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(report_module, "write_png", lambda *_: None)
    report = Report.read(GOLDEN / "replications_ngpt.json")
    lost = report.results.pop()
    report.missing = [lost.run]
    report.sessions[0]["failed"] = [vars(lost.run) | {"error": "OutOfMemoryError: too big\ntrace"}]
    file = tmp_path / "replications_ngpt.json"
    report.write(file)
    page = report_module.write(file, tmp_path).read_text()
    assert "1 known run of the protocol" in page
    assert "OutOfMemoryError: too big." in page
    assert "trace" not in page


def test_pictures_are_made(tmp_path):
    pytest.importorskip("vl_convert")
    records = [{"arm": arm, "context": 1, "x": x, "y": x, "seed": 0} for arm in "ab" for x in (1.0, 2.0)]
    chart = figures.lines(records, ("x", "x"), ("y", "y"), ["a", "b"], ("context", "context"), log_x=True)
    figures.write_png(chart, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
