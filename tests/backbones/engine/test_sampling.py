"""What a row's sampling settings do, and that no neighbour sees them."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nlrl.backbones.engine import Engine
from nlrl.backbones.kv_cache import KVCache, PagedKVCache
from nlrl.backbones.language_model import LanguageModel, Message, Request, Sampling
from nlrl.backbones.sampler import filtered, gumbel_noise, signed_seed
from nlrl.backbones.tokenizer import train_tokenizer
from nlrl.backbones.transformer.configuration import TransformerConfig
from nlrl.backbones.transformer.modeling import TransformerForCausalLM
from nlrl.errors import NLRLError

CUDA = torch.cuda.is_available()
DEVICES = ["cpu", "cuda"] if CUDA else ["cpu"]
ATOMS = [r"[+-]\d\.\d\d", r"[a-z]", r" "]


@pytest.fixture(scope="module")
def tokenizer():
    scores = [f"{sign}{value / 100:.2f}" for value in range(101) for sign in "+-"]
    return train_tokenizer(["a b c d e f g h"] * 50, ATOMS, [*scores, "+1.50"], 1000)


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(scope="module")
def model(tokenizer, device):
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=len(tokenizer) + 3,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.15,
    )
    return TransformerForCausalLM(config).to(device)


@pytest.fixture
def lm(model, tokenizer):
    return Engine(model, tokenizer)


class Table(nn.Module):
    """Says the logits of a table `(time, vocab)`, whatever it reads: row t after t + 1 tokens."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, rows):
        super().__init__()
        self.rows = torch.stack(rows)
        self.config = SimpleNamespace(vocab_size=self.rows.shape[1], model_type="table")

    def hidden(self, input_ids, position_ids, mask=None, state=None):
        return self.rows[position_ids]

    def logits(self, hidden):
        return hidden

    def head(self):
        return torch.eye(self.rows.shape[1]), None

    def new_paged_state(self, batch, length, pages, device=None, dtype=None):
        return PagedKVCache.like(KVCache(*torch.zeros(2, 1, 1, 1, 1, 1)), batch, pages, length, torch.device("cpu"))


def sure_of(tokenizer, *texts):
    """Table rows that give each text's token nearly all probability. A dict gives log-probabilities by text."""
    rows = []
    for text in texts:
        row = torch.full((len(tokenizer),), -30.0)
        for piece, logit in (text if isinstance(text, dict) else {text: 0.0}).items():
            [token] = tokenizer.encode(piece, add_special_tokens=False)
            row[token] = logit
        rows.append(row)
    return rows


def ragged(count, **sampling):
    prompts = [tuple(4 + (7 * i + 3 * t) % 200 for t in range(1 + (5 * i) % 17)) for i in range(count)]
    return [
        Request(tokens=p, sampling=Sampling(max_tokens=3 + (4 * i) % 11, **sampling), seed=i)
        for i, p in enumerate(prompts)
    ]


def same(a, b):
    assert a.tokens == b.tokens
    assert a.finish_reason == b.finish_reason
    assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4 if CUDA else 1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ragged_batches_answer_like_single_requests(lm, temperature):
    requests = ragged(23, temperature=temperature)
    for together, request in zip(lm.generate(requests), requests, strict=True):
        same(together, lm.generate([request])[0])


def test_greedy_answers_follow_the_uncached_model(lm, model):
    for request, answer in zip(ragged(5), lm.generate(ragged(5, temperature=0.0)), strict=True):
        tokens = list(request.tokens)
        for token, logprob in zip(answer.tokens, answer.logprobs, strict=True):
            ids = torch.tensor([tokens], device=model.device)
            with torch.no_grad():
                logits = model.logits(model.hidden(ids, torch.arange(len(tokens), device=model.device)[None]))[0, -1]
            assert token == int(logits.argmax())
            assert logprob == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-5)
            tokens.append(token)


def test_a_seeded_answer_ignores_its_neighbours_and_order(lm):
    requests = ragged(9)
    backwards = lm.generate(requests[::-1])[::-1]
    for a, b in zip(lm.generate(requests), backwards, strict=True):
        same(a, b)


def test_other_seeds_give_other_answers_to_one_prompt(lm):
    answers = lm.generate([Request(tokens=(5, 6), sampling=Sampling(max_tokens=8), seed=seed) for seed in range(20)])
    assert len({answer.tokens for answer in answers}) > 15


def test_equal_requests_are_answered_once(lm):
    request = Request(tokens=(5, 6, 7), sampling=Sampling(max_tokens=2, ignore_end=True))
    greedy = Request(tokens=(5, 6), sampling=Sampling(max_tokens=2, temperature=0.0, ignore_end=True))
    before = lm.metrics()["generated_tokens_total"]
    answers = lm.generate([*(request.with_seed(seed) for seed in (1, 2, 3, 3, 3)), *map(greedy.with_seed, range(7))])
    assert lm.metrics()["generated_tokens_total"] - before == 2 * (3 + 1)
    assert answers[2] == answers[3] == answers[4]
    assert len(set(answers[5:])) == 1


def test_samples_follow_the_models_distribution(tokenizer):
    row = torch.full((len(tokenizer),), -math.inf)
    row[10:14] = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    lm = Engine(Table([row]), tokenizer)

    def frequencies(temperature):
        sampling = Sampling(temperature=temperature, max_tokens=1)
        answers = lm.generate([Request(tokens=(1,), sampling=sampling, seed=seed) for seed in range(20_000)])
        counts = Counter(answer.tokens[0] for answer in answers)
        return [counts[token] / 20_000 for token in range(10, 14)]

    assert frequencies(1.0) == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.015)
    assert frequencies(0.5) == pytest.approx([1 / 30, 4 / 30, 9 / 30, 16 / 30], abs=0.015)


def test_logprobs_are_at_temperature_one_before_filters(tokenizer):
    row = torch.tensor([0.1, 0.2, 0.7]).log().repeat(len(tokenizer))[: len(tokenizer)]
    lm = Engine(Table([row]), tokenizer)
    [answer] = lm.generate([Request(tokens=(1,), sampling=Sampling(temperature=0.3, top_k=2, max_tokens=1))])
    assert answer.logprobs == pytest.approx([float(row.log_softmax(-1)[answer.tokens[0]])], abs=1e-5)


def test_filters_keep_top_k_and_the_nucleus_of_each_row():
    logits = torch.tensor([0.4, 0.1, 0.3, 0.2]).log().expand(4, 4).contiguous()
    top_k = torch.tensor([0, 2, 0, 3])
    top_p = torch.tensor([1.0, 1.0, 0.5, 0.3])
    kept = filtered(logits, torch.ones(4), top_k, top_p).isfinite().tolist()
    assert kept == [[True] * 4, [True, False, True, False], [True, False, True, False], [True, False, False, False]]


def test_the_nucleus_is_taken_at_the_rows_temperature():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    hot = filtered(logits, torch.tensor([5.0]), torch.tensor([0]), torch.tensor([0.7]))
    cold = filtered(logits, torch.tensor([0.2]), torch.tensor([0]), torch.tensor([0.7]))
    assert (int(hot.isfinite().sum()), int(cold.isfinite().sum())) == (3, 1)


def test_filtered_and_plain_rows_share_a_batch(lm):
    plain, cut = ragged(6), ragged(6, top_k=3, top_p=0.9)
    mixed = lm.generate([*plain, *cut])
    for a, b in zip(mixed, [*lm.generate(plain), *lm.generate(cut)], strict=True):
        same(a, b)


def test_noise_is_the_documented_hash():
    """Against plain Python integers, so that every device and version draws alike."""
    seeds, steps = [0, 1, 2**64 - 1, 0x123456789ABCDEF], [0, 7]
    for step in steps:
        noise = gumbel_noise(torch.tensor([signed_seed(seed) for seed in seeds]), torch.tensor(step), 50)
        for row, seed in zip(noise, seeds, strict=True):
            expected = [_gumbel(seed, step, token) for token in range(50)]
            assert row.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def _gumbel(seed, step, token):
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    z ^= z >> 31
    x = token * 0x9E3779B1 % 2**32 ^ (z >> 32)
    x = ((x ^ (x >> 16)) * 0x85EBCA6B + z) % 2**32
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return -math.log(-math.log((((x ^ (x >> 16)) % 2**23) + 0.5) / 2**23))


def test_an_answer_ends_at_the_end_token_and_keeps_it(tokenizer):
    lm = Engine(Table(sure_of(tokenizer, "a", "b", "<eos>", "c")), tokenizer)
    [answer] = lm.generate([Request(tokens=(1,), sampling=Sampling(temperature=0.0, max_tokens=4))])
    assert (answer.text, answer.finish_reason, answer.prompt_tokens) == ("ab", "stop", 1)
    assert answer.tokens[-1] == tokenizer.eos_token_id
    assert len(answer.tokens) == len(answer.logprobs) == 3


def test_rows_that_end_early_leave_the_others_alone(lm):
    limits = [1, 2, 12, 1, 1, 3, 1, 12]
    requests = [Request(tokens=(5 + i,), sampling=Sampling(max_tokens=n), seed=i) for i, n in enumerate(limits)]
    for request, answer in zip(requests, lm.generate(requests), strict=True):
        same(answer, lm.generate([request])[0])


def test_stop_strings_cut_text_and_tokens(tokenizer):
    lm = Engine(Table(sure_of(tokenizer, *"abcdefgh")), tokenizer)

    def answer(*stop):
        return lm.generate([Request(tokens=(1,), sampling=Sampling(temperature=0.0, max_tokens=8, stop=stop))])[0]

    assert (answer("cd").text, len(answer("cd").tokens), answer("cd").finish_reason) == ("ab", 4, "stop")
    assert answer("x", "g", "f").text == "abcde"
    assert (answer("zz").text, answer("zz").finish_reason) == ("abcdefgh", "length")
    assert len(answer("a").logprobs) == 1


def test_expected_number_is_read_and_the_nearest_grid_number_written(tokenizer):
    numbers = {"+0.50": math.log(0.6), "-0.31": math.log(0.4)}  # 0.6 * 0.5 - 0.4 * 0.31 = 0.176
    rows = sure_of(tokenizer, "a", numbers, " ", {"-1.00": 0.0}, "<eos>")
    lm = Engine(Table(rows), tokenizer)
    assert lm.reads_expectations

    def answer(**sampling):
        return lm.generate([Request(tokens=(1,), sampling=Sampling(temperature=0.0, max_tokens=5, **sampling))])[0]

    assert answer(expected_number=True).expectation == pytest.approx(0.176, abs=1e-5)
    assert answer(expected_number=True).text == "a+0.18 -1.00"
    assert answer().text == "a+0.50 -1.00"
    assert answer().expectation is None


def test_every_number_can_be_written_without_a_grid(tokenizer):
    rows = sure_of(tokenizer, {"+0.50": math.log(0.6), "-0.32": math.log(0.4)}, "<eos>")  # 0.172
    request = Request(tokens=(1,), sampling=Sampling(temperature=0.0, max_tokens=2, expected_number=True))
    texts = [Engine(Table(rows), tokenizer, number_grid=g).generate([request])[0].text for g in (0.02, 0, 0.5)]
    assert texts == ["+0.18", "+0.17", "+0.00"]


def test_an_answer_without_a_number_has_no_expectation(tokenizer):
    lm = Engine(Table(sure_of(tokenizer, "a", "+1.50", "<eos>")), tokenizer)  # out of range: not a verdict
    [answer] = lm.generate(
        [Request(tokens=(1,), sampling=Sampling(temperature=0.0, max_tokens=3, expected_number=True))]
    )
    assert (answer.text, answer.expectation) == ("a+1.50", None)


def test_expectations_are_read_row_by_row(lm, model):
    wants = ragged(12, expected_number=True)
    plain = ragged(12)
    mixed = lm.generate([*wants, *plain])
    for a, b in zip(mixed, [*lm.generate(wants), *lm.generate(plain)], strict=True):
        same(a, b)
        assert a.expectation == pytest.approx(b.expectation, abs=1e-5)
    read = [answer for answer in mixed[:12] if answer.expectation is not None]
    assert read, "an untrained model says numbers now and then"
    assert all(-1 <= answer.expectation <= 1 for answer in read)


def test_messages_are_rendered_by_the_chat_template(lm, tokenizer):
    messages = (Message("system", "a b"), Message("user", "c d"))
    tokens = tuple(tokenizer.encode("<bos>a b\nc d<answer>", add_special_tokens=False))
    sampling = Sampling(max_tokens=4)
    by_messages, by_tokens = lm.generate([Request(messages, (), sampling, 3), Request((), tokens, sampling, 3)])
    assert by_messages == by_tokens
    assert by_messages.prompt_tokens == len(tokens)


def test_new_weights_speak_under_their_version(lm, model, tokenizer):
    requests = ragged(4, temperature=0.0)
    before = lm.generate(requests)
    old = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    new = {key: torch.roll(tensor, 1, 0) for key, tensor in old.items()}
    try:
        lm.load_weights(new, "v2")
        after = lm.generate(requests)
    finally:
        lm.load_weights(old, "v1")
    assert {answer.weight_version for answer in before} == {"initial"}
    assert {answer.weight_version for answer in after} == {"v2"} != {lm.weight_version}
    assert [a.tokens for a in before] != [a.tokens for a in after]
    assert [a.tokens for a in lm.generate(requests)] == [a.tokens for a in before]
    assert pointers == [parameter.data_ptr() for parameter in model.parameters()]


def test_weights_that_do_not_fit_are_refused_by_name_and_change_nothing(lm, model):
    state = dict(model.state_dict())
    name = "layers.1.mlp.down.weight"
    for wrong in (
        {**state, name: state[name][1:]},
        {**state, "extra": state[name]},
        {k: v for k, v in state.items() if k != name},
    ):
        with pytest.raises(NLRLError, match="extra|" + name.replace(".", r"\.")):
            lm.load_weights(wrong, "v2")
    assert lm.weight_version == "initial"


def test_tied_weights_may_come_under_one_name(lm, model):
    state = {key: tensor for key, tensor in model.state_dict().items() if key != "lm_head.weight"}
    lm.load_weights(state, "v2")
    assert lm.weight_version == "v2"


def test_scores_are_the_logprobs_of_sampled_answers(lm):
    requests = ragged(11)
    answers = lm.generate(requests)
    scores = lm.score([request.tokens for request in requests], [answer.tokens for answer in answers])
    for score, answer in zip(scores, answers, strict=True):
        assert score == pytest.approx(answer.logprobs, abs=1e-5)


def test_scores_of_empty_continuations_are_empty(lm):
    assert lm.score([(5,), (5, 6)], [(), (7,)])[0] == []
    assert lm.score([], []) == []


def test_the_context_limits_answers_and_refuses_long_prompts(lm):
    sampling = Sampling(max_tokens=50)
    long, short = lm.generate(
        [Request(tokens=(5,) * 64, sampling=sampling), Request(tokens=(5,) * 60, sampling=sampling)]
    )
    assert (long.finish_reason, long.tokens) == ("error", ())
    assert "64" in long.error
    assert len(short.tokens) <= 4


def test_no_tokens_wanted_no_tokens_given(lm):
    [answer] = lm.generate([Request(tokens=(5,), sampling=Sampling(max_tokens=0))])
    assert (answer.text, answer.finish_reason, answer.weight_version) == ("", "length", "initial")
    assert lm.generate([]) == []


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (Request(), "messages"),
        (Request(messages=(Message("user", "a"),), tokens=(5,)), "messages"),
        (Request(tokens=(5,), sampling=Sampling(temperature=-1.0)), "temperature"),
        (Request(tokens=(5,), sampling=Sampling(temperature=math.nan)), "temperature"),
        (Request(tokens=(5,), sampling=Sampling(top_p=0.0)), "top_p"),
        (Request(tokens=(5,), sampling=Sampling(top_k=-1)), "top_k"),
        (Request(tokens=(5,), sampling=Sampling(max_tokens=-1)), "max_tokens"),
        (Request(tokens=(5,), sampling=Sampling(stop=("",))), "stop"),
    ],
)
def test_impossible_requests_are_refused_by_field(lm, request_, named):
    with pytest.raises(NLRLError, match=named):
        lm.generate([request_])


def test_another_dtype_is_a_private_copy(model, tokenizer):
    lm = Engine(model, tokenizer, dtype=torch.bfloat16)
    [answer] = lm.generate([Request(tokens=(5, 6), sampling=Sampling(max_tokens=3))])
    assert len(answer.logprobs) == len(answer.tokens)
    assert model.dtype == torch.float32
    lm.load_weights(model.state_dict(), "v2")
    assert lm.model.dtype == torch.bfloat16


def test_it_is_a_language_model(lm):
    assert isinstance(lm, LanguageModel)
