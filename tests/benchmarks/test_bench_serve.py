"""`nlrl bench serve` asks both engines for the same and counts right; how fast anything is, is not tested."""

import json
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from nlrl.benchmarks import cache, serve, serve_game, serve_hymba, serve_kl, serve_start, serve_throughput
from nlrl.testing.runs import write_run

TINY = ["--device", "cpu", "--rounds", "2", "--layers", "1", "--width", "64", "--requests", "3", "--prompt-tokens", "8"]
FAKE = """
import json, pathlib, time
from types import SimpleNamespace
__version__ = "0"
def SamplingParams(**fields):
    return SimpleNamespace(**fields)
class LLM:
    def __init__(self, **settings):
        print("vLLM prints what it likes")
        assert pathlib.Path(settings["model"], "model.safetensors").is_file()
        self.length = settings["max_model_len"]
    def generate(self, prompts, sampling, use_tqdm):
        time.sleep(0.01)
        assert all(len(p["prompt_token_ids"]) + sampling.max_tokens == self.length for p in prompts)
        assert sampling.ignore_eos and sampling.temperature == 0
        answer = SimpleNamespace(token_ids=[7] * (sampling.max_tokens - SHORT))
        return [SimpleNamespace(outputs=[answer]) for _ in prompts]
"""


@pytest.fixture
def fake_vllm(tmp_path):
    """fake_vllm(short) is a folder with a vLLM that writes `short` tokens too few, as arguments of the benchmark."""

    def make(short: int = 0) -> list[str]:
        (tmp_path / "vllm.py").write_text(f"SHORT = {short}\n{FAKE}")
        return ["--vllm-python", sys.executable, "--vllm-path", str(tmp_path)]

    return make


def test_both_engines_are_measured_on_one_checkpoint(fake_vllm, tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert serve.main([*TINY, "--loads", "bundled", "--tokens", "4", *fake_vllm(), "--json", str(file)]) == 0
    found = json.loads(file.read_text())["figures"]
    assert [figure["name"] for figure in found] == ["nlrl", "vLLM 0"] * 2
    assert [figure["what"] for figure in found[::2]] == [f"{n} request(s) of 8 tokens in, 4 out" for n in (3, 1)]
    assert [figure["ratio"] is None for figure in found] == [True, False] * 2
    assert [figure["target"] for figure in found] == ["", "at least 3x", "", ""]
    assert found[1]["met"] == (found[1]["ratio"] >= 3)
    assert f"nlrl is {found[1]['ratio']:.2f}x" in capsys.readouterr().out


def test_an_engine_that_writes_too_little_is_not_measured(fake_vllm):
    with pytest.raises(RuntimeError, match="vLLM 0 wrote 9 tokens, not 4 for each of 3"):
        serve.main([*TINY, "--loads", "bundled", "--tokens", "4", *fake_vllm(short=1)])


def test_a_vllm_that_fails_says_why(fake_vllm, tmp_path, capsys):
    arguments = fake_vllm()
    (tmp_path / "vllm.py").write_text("raise ImportError('no such library')")
    assert serve.main([*TINY, "--loads", "bundled", "--tokens", "4", *arguments]) == 1
    assert "no such library" in capsys.readouterr().err


def test_ours_is_measured_alone_where_there_is_no_vllm(tmp_path, capsys):
    nowhere = ["--vllm-python", str(tmp_path / "python")]
    assert serve.main([*TINY, "--loads", "bundled", "--tokens", "2", *nowhere]) == 0
    printed = capsys.readouterr().out
    assert "vLLM is not measured: no interpreter" in printed
    assert printed.count("nlrl ") == 2


def test_prompts_are_new_in_every_round_and_the_same_in_every_run():
    found = [serve_throughput.prompts(4, 6, 40, key) for key in (1, 2, 1)]
    assert found[0] == found[2] != found[1]
    assert all(5 <= token < 40 for prompts in found for prompt in prompts for token in prompt)


@pytest.mark.parametrize(("fields", "millions"), [(serve.SMALL, 16), (serve.LARGE, 1190)])
def test_the_models_of_the_gpu_loads_have_their_sizes(fields, millions):
    model = cache.empty_model({"model_type": "transformer", **fields})
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_a_start_ends_with_a_token(tmp_path, capsys):
    serve_throughput.export(serve_throughput.shape(1, 64, 1024), tmp_path / "model", 64, "float32")
    serve_start.main(str(tmp_path / "model"), "cpu")
    assert capsys.readouterr().out == "first token\n"


# -- against the trainer -----------------------------------------------------------------------------------------------
def test_log_ratios_are_the_trainers_less_the_engines():
    from nlrl.backbones import TransformerConfig, TransformerForCausalLM

    torch.manual_seed(0)
    model = TransformerForCausalLM(TransformerConfig(**serve_throughput.shape(1, 64, 40))).eval()
    drawn, expected = [], []
    for number, (prompt, answer) in enumerate([((5, 6, 7), (8, 9)), ((5,), (9, 9, 9)), ((5, 6, 7), (8, 9))]):
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            scores = model.logits(model.hidden(ids, torch.arange(ids.shape[1])[None])).log_softmax(-1)[0]
        own = [scores[len(prompt) - 1 + i, token].item() - 0.1 * number for i, token in enumerate(answer)]
        drawn.append((prompt, answer, own))
        expected += [0.1 * number] * len(answer)
    found = serve_kl.log_ratios(model, drawn, bf16=False).tolist()
    assert sorted(found) == pytest.approx(sorted(expected), abs=1e-5)


def test_an_engine_that_agrees_with_the_trainer_is_said_to():
    figures = serve_kl.compare("cpu", count=4, tokens=16, names=["transformer-base"])
    assert [(figure.name, figure.met) for figure in figures] == [("float32", True), ("bfloat16", True)]
    assert 0 <= figures[0].value < figures[1].value


# -- beside the roofline -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("batch", "length", "rate"),
    [(1, 1024, 957), (1, 8192, 945), (32, 1024, 16_289), (128, 1024, 26_595), (128, 8192, 19_469)],
)
def test_the_roofline_is_the_derived_one(batch, length, rate):
    model = cache.empty_model(cache.PUBLISHED[cache.HYMBA])
    weights = 2 * sum(weight.numel() for weight in model.parameters())
    assert serve_hymba.roofline(model.config, weights, batch, length) == pytest.approx(rate, rel=2e-3)


def test_decoding_is_timed_without_reading_the_prompts(monkeypatch):
    """With a clock that charges a second a token written and a hundred a token read."""
    engine = SimpleNamespace(now=0.0, known=set())

    def generate(requests):
        for request in requests:
            engine.now += request.sampling.max_tokens + 100 * len(request.tokens) * (request.tokens not in engine.known)
            engine.known |= {request.tokens} if request.marks == (len(request.tokens),) else set()

    class Engine(SimpleNamespace):
        def __enter__(self):
            return SimpleNamespace(generate=generate)

        def __exit__(self, *exception):
            pass

    monkeypatch.setattr("nlrl.backbones.engine.Engine", lambda *args, **options: Engine())
    monkeypatch.setattr(serve_hymba.time, "perf_counter", lambda: engine.now)
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=100))
    assert serve_hymba.decoding_rate(model, None, batch=4, length=20, rounds=3) == 1.0


# -- a game's load -----------------------------------------------------------------------------------------------------
@pytest.fixture
def run(tmp_path):
    from nlrl.envs import make

    game = make("tictactoe")
    start = game.to_text(game.initial_state(None))
    turns = [{"ply": 0, "reply": "best_move: 5"}, {"ply": 2, "reply": "best_move: 9"}]
    records = {
        "000/rollout": [{"start": start, "actions": [4, 0, 8], "turns": turns}],
        "000/targets": [
            {"state": start, "action": 4, "samples": ["O5 X1 O9", "O5 X2"], "evidence": "games", "text": "good"}
        ],
        "000/improvement": [
            {"state": start, "candidates": [{"action": 4, "text": "good", "verdict": 0.5}], "text": "best_move: 5"}
        ],
    }
    return write_run(tmp_path / "run", records=records)


def test_records_become_the_prompts_that_were_asked(run):
    from nlrl.agents.roles import Roles, StateInput
    from nlrl.envs import make

    found = serve_game.asks(run, "instruct")
    assert [ask.answer for ask in found] == ["best_move: 5", "best_move: 9", "good", "good", "best_move: 5"]
    game = make("tictactoe")
    system, user = Roles(game, "instruct").policy.messages(StateInput(game.initial_state(None)))
    assert "".join(found[0].segments) == f"<bos>{system.content}\n{user.content}<answer>"
    assert found[0].segments[1] == game.to_text(game.initial_state(None))
    assert "O5 X1 O9" in found[2].segments[-1]
    plain = serve_game.asks(run, "plain")[0].segments
    assert plain[0].endswith(found[0].segments[1])
    assert len(plain) == 2


def test_segments_end_in_marks_and_without_reuse_nothing_is_shared(run):
    from nlrl.backbones import load

    tokenizer = load("transformer-base")[1]
    found = serve_game.asks(run, "instruct")
    shared, apart = (serve_game.requests_of(found, tokenizer, reuse) for reuse in (True, False))
    for ask, one, other in zip(found, shared, apart, strict=True):
        first, second, end = one.marks
        assert tokenizer.decode(one.tokens[:first]) == ask.segments[0]
        assert tokenizer.decode(one.tokens[first:second]) == ask.segments[1]
        assert end == len(one.tokens) == len(other.tokens)
        assert one.sampling == other.sampling
        assert not other.marks
    assert len({request.tokens[: serve_game.NONCE] for request in apart}) == len(apart)


def test_a_games_load_is_served_and_its_hits_counted(run):
    figures = serve_game.compare(run, "plain", 5, "cpu", 1, names=["bimamba-base"])
    assert [figure.name for figure in figures] == ["served", "offline", "served, no reuse"]
    assert "bimamba-base, 5 requests" in figures[0].what
    assert figures[0].note.startswith("prefix hit rate ")


def test_all_that_is_spread_are_neighbours_in_order():
    found = list(range(10_000))
    taken = serve_game.spread(found, 256)
    assert len(taken) == 256
    assert taken == sorted(taken)
    assert sum(b - a == 1 for a, b in pairwise(taken)) == 256 - 32
    assert serve_game.spread(found, 20_000) == found
