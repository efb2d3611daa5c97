"""What a constraint forbids is never written, and among the rest the model's own distribution rules."""

import json
import re
from functools import cache

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nlrl import kernels
from nlrl.backbones.engine.constraints import Grammars, fill_batch, masked_logits
from nlrl.backbones.language_model import Constraint
from nlrl.backbones.registry import BUNDLED
from nlrl.backbones.sampler import filtered
from nlrl.backbones.tokenizer import load_tokenizer
from nlrl.errors import NLRLError

TOKENIZER = load_tokenizer(BUNDLED / "transformer-base")
VOCABULARY = len(TOKENIZER) + 37
WORDS = -(-VOCABULARY // 32)
ENDS = set(TOKENIZER.convert_tokens_to_ids(["<eos>", "<answer>"]))
GRAMMARS = Grammars(TOKENIZER, VOCABULARY, ENDS)
SHARING = ("a1", "a1b2", "a2", "outlooks.\n", "win +0.42", "é…")
"""Choices of which one begins another, one holds a number token, and one has letters that only bytes can write."""
SCHEMA = {
    "type": "object",
    "properties": {
        "move": {"enum": ["a1", "a1b2"]},
        "values": {"type": "array", "items": {"type": "integer", "minimum": -9, "maximum": 120}, "maxItems": 3},
        "why": {"type": "string", "maxLength": 6},
    },
    "required": ["move", "values"],
    "additionalProperties": False,
}


def choice(*texts):
    return Constraint("choice", texts)


def start(constraint, grammars=GRAMMARS):
    return grammars.compile(constraint).start()


def allowed(matcher, vocabulary=VOCABULARY):
    mask = np.full(-(-vocabulary // 32), 0x55555555, np.int32)  # what was there before must not show
    matcher.fill(mask)
    return {token for token in range(vocabulary) if mask[token // 32] >> (token % 32) & 1}


@cache
def piece(token):
    """The bytes that a token stands for, by the alphabet of byte-level tokenizers; None if it is no text."""
    text = TOKENIZER.convert_ids_to_tokens(token) if token < len(TOKENIZER) else None
    if text is None or token in TOKENIZER.all_special_ids:
        return None
    return bytes(_BYTE[letter] for letter in text)


def _alphabet():
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(b): b for b in printed} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE = _alphabet()


def following(prefix, texts):
    """The tokens that lead from `prefix` towards one of `texts`, by trying them all."""
    rest = [text[len(prefix) :] for text in texts if text.startswith(prefix)]
    text_tokens = {t for t in range(VOCABULARY) if piece(t) and any(r.startswith(piece(t)) for r in rest)}
    return text_tokens | (ENDS if b"" in rest else set())


def write(constraint, seed, flatness=1.0):
    """An answer sampled from random logits. The end tokens' are low, so that an early end is rare."""
    generator = torch.Generator().manual_seed(seed)
    matcher, tokens = start(constraint), []
    mask = torch.zeros(1, WORDS, dtype=torch.int32)
    while not matcher.done and len(tokens) < 400:
        logits = torch.randn(1, VOCABULARY, generator=generator) * flatness
        logits[:, list(ENDS)] -= 2
        fill_batch([matcher], mask)
        token = int(masked_logits(logits, mask).softmax(-1).multinomial(1, generator=generator))
        matcher.accept(token)
        if token in ENDS:
            break
        tokens.append(token)
    assert matcher.done
    assert allowed(matcher) == ENDS
    return b"".join(piece(token) for token in tokens).decode()


def test_every_tokenisation_of_a_choice_is_allowed_and_nothing_else():
    texts = [text.encode() for text in SHARING]
    places, seen = [(b"", start(choice(*SHARING)))], set()
    while places:
        prefix, matcher = places.pop()
        seen.add(prefix)
        expected = following(prefix, texts)
        assert allowed(matcher) == expected, prefix
        assert matcher.done == (expected == ENDS)
        for token in expected - ENDS:
            after = matcher.fork()
            after.accept(token)
            places.append((prefix + piece(token), after))
    assert seen.issuperset(texts)


def test_a_number_token_is_one_step_of_a_choice():
    matcher = start(choice(" +0.42", " -0.40"))
    (number,) = [token for token in range(VOCABULARY) if piece(token) == b" +0.42"]
    assert number in allowed(matcher)
    matcher.accept(number)
    assert matcher.done


def test_an_answer_may_end_between_two_choices_and_must_after_the_last():
    matcher = start(choice("a1", "a1b2"))
    for token in TOKENIZER.encode("a1"):
        assert not ENDS & allowed(matcher)
        matcher.accept(token)
    assert not matcher.done
    assert allowed(matcher) > ENDS
    for end in ENDS:
        ended = matcher.fork()
        ended.accept(end)
        assert ended.done
        ended.accept(end)
    for token in TOKENIZER.encode("b2"):
        matcher.accept(token)
    assert matcher.done
    for end in ENDS:
        matcher.fork().accept(end)


def test_free_text_has_no_special_token_and_no_logit_without_a_token():
    tokens = allowed(start(Constraint("regex", "(?s:.*)")))
    assert tokens >= ENDS
    assert all(piece(token) for token in tokens - ENDS)
    assert tokens.issuperset(token for token in range(VOCABULARY) if (piece(token) or b"\xff").isascii())


@pytest.mark.parametrize(
    "pattern",
    [r"[+-][01]\.\d{2}", r"(win|lose) in [1-9]( moves)?\.", r"^[a-c]{2,5}/?$", "é{1,3}x?", "x\n?y\\n", "(?i)draw", ""],
)
def test_random_text_under_a_regex_matches_it(pattern):
    texts = {write(Constraint("regex", pattern), seed) for seed in range(20)}
    assert all(re.fullmatch(pattern, text) for text in texts), texts


def test_random_text_under_choices_is_one_and_every_one_occurs():
    assert {write(choice(*SHARING), seed, flatness=0.3) for seed in range(200)} == set(SHARING)


def test_random_text_under_a_schema_is_json_that_fits():
    answers = [json.loads(write(Constraint("json_schema", json.dumps(SCHEMA)), seed)) for seed in range(40)]
    for answer in answers:
        assert {"move", "values"} <= set(answer) <= set(SCHEMA["properties"])
        assert answer["move"] in ("a1", "a1b2")
        assert len(answer["values"]) <= 3
        assert all(isinstance(value, int) and -9 <= value <= 120 for value in answer["values"])
        assert len(answer.get("why", "")) <= 6
    assert any("why" in answer for answer in answers)


@pytest.mark.parametrize(
    ("text", "fits"),
    [('{"a": 1, "b": 2}', True), ('{"a":1,"b":2}', True), ('{"a":  1, "b": 2}', False), ('{\n"a": 1, "b": 2}', False)],
)
def test_json_is_spaced_as_people_do_but_not_for_ever(text, fits):
    properties = {name: {"type": "integer"} for name in "ab"}
    schema = {"type": "object", "properties": properties, "required": ["a", "b"]}
    assert accepts(Constraint("json_schema", json.dumps(schema)), text) == fits


def test_a_schema_may_space_its_json_otherwise():
    schema = '{"type": "array", "items": {"type": "null"}, "minItems": 2, "x-guidance": {"whitespace_flexible": true}}'
    assert accepts(Constraint("json_schema", schema), "[ \nnull,   null\n]")


def accepts(constraint, text):
    matcher = start(constraint)
    try:
        for token in TOKENIZER.encode(text):
            matcher.accept(token)
    except NLRLError:
        return False
    return matcher.done


def chi_square_p(draws, probability):
    """The chance of counts at least so far from `probability` `(vocabulary,)`; 0 if the impossible was drawn."""
    possible = probability > 0
    counts = torch.bincount(draws, minlength=len(probability)).double()
    if counts[~possible].any():
        return 0.0
    expected = probability[possible] * len(draws)
    assert expected.min() > 5, "the approximation needs more draws"
    distance = ((counts[possible] - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc((possible.sum() - 1) / 2, distance / 2))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_masked_sampling_samples_the_renormalised_distribution(temperature):
    count = 12_000
    prefix, texts = b"", [text.encode() for text in SHARING]
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(1))
    probability = torch.zeros(VOCABULARY, dtype=torch.float64)
    tokens = sorted(following(prefix, texts))
    assert len(tokens) > 5
    probability[tokens] = (logits[tokens].double() / temperature).softmax(-1)

    mask = torch.zeros(1, WORDS, dtype=torch.int32)
    fill_batch([start(choice(*SHARING))], mask)
    heat, everything = torch.full((count,), temperature), torch.zeros(count, dtype=torch.int64)

    def drawn(scores):
        scores = scores.expand(count, -1)
        if temperature != 1:  # and a filter that keeps everything
            scores = filtered(scores, heat, everything, torch.ones(count))
        return kernels.sample(scores, torch.arange(count), everything, heat)[0]

    assert chi_square_p(drawn(masked_logits(logits[None], mask)), probability) > 0.01
    assert chi_square_p(drawn(logits[None]), probability) < 1e-6
    # The test also sees a wrong distribution over the right tokens.
    assert chi_square_p(drawn(masked_logits(1.1 * logits[None], mask)), probability) < 1e-3


def test_forks_go_their_own_ways():
    matcher = start(choice("a1", "a2b", "b3"))
    a, b = TOKENIZER.encode("a") + TOKENIZER.encode("b")
    fork = matcher.fork()
    fork.accept(a)
    matcher.accept(b)
    sibling = fork.fork()
    assert allowed(matcher) == following(b"b", [b"b3"])
    assert allowed(fork) == allowed(sibling) == following(b"a", [b"a1", b"a2b"])
    for token in TOKENIZER.encode("1"):
        sibling.accept(token)
    assert sibling.done
    assert allowed(fork) == following(b"a", [b"a1", b"a2b"])
    assert allowed(start(choice("a1", "a2b", "b3"))) == following(b"", [b"a1", b"a2b", b"b3"])


def test_a_token_that_is_not_allowed_is_refused_and_changes_nothing():
    matcher = start(choice("a1", "b2"))
    before = allowed(matcher)
    for token in (TOKENIZER.encode("c")[0], min(ENDS), TOKENIZER.pad_token_id, VOCABULARY - 1):
        with pytest.raises(NLRLError, match=rf"choice \('a1', 'b2'\): token {token} is not allowed"):
            matcher.accept(token)
    assert allowed(matcher) == before
    assert not matcher.error


def test_a_batch_of_masks_is_the_masks_of_its_rows():
    matchers = [start(choice("a1", "b")), None, start(Constraint("regex", "[0-9]+")), None, start(choice("b", "c"))]
    bitmask = torch.zeros(6, WORDS, dtype=torch.int32)
    for _ in range(2):  # a second time over what the first left
        fill_batch(matchers, bitmask)
        for matcher, row in zip([*matchers, None], bitmask, strict=True):
            expected = torch.full_like(row, -1)
            if matcher is not None:
                matcher.fill(expected)
            assert torch.equal(row, expected)
        matchers[0], matchers[2] = matchers[2], None
    fill_batch([], bitmask)
    assert (bitmask == -1).all()


def test_a_mask_of_another_form_is_refused():
    matcher = start(choice("a"))
    for mask in (torch.zeros(WORDS), torch.zeros(WORDS + 1, dtype=torch.int32), np.zeros((1, WORDS), np.int32)):
        with pytest.raises(ValueError, match=r"mask|buffer"):
            matcher.fill(mask)
    with pytest.raises(ValueError, match="2 matchers"):
        fill_batch([matcher, None], torch.zeros(1, WORDS, dtype=torch.int32))
    with pytest.raises(ValueError, match="contiguous"):
        fill_batch([matcher], torch.zeros(WORDS, 2, dtype=torch.int32).T)


def test_masked_logits_are_the_logits_where_a_bit_is_set():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 70, generator=generator)
    keep = torch.rand(3, 70, generator=generator) < 0.5
    keep[:, 31] = True  # the sign bit of a word
    bitmask = np.zeros((3, 3), np.uint32)
    for row, token in keep.nonzero().tolist():
        bitmask[row, token // 32] |= np.uint32(1 << token % 32)
    masked = masked_logits(logits, torch.from_numpy(bitmask.view(np.int32)))
    assert torch.equal(masked, torch.where(keep, logits, -torch.inf))
    assert torch.equal(masked_logits(logits, torch.full((3, 3), -1, dtype=torch.int32)), logits)


def test_masking_asks_the_host_for_nothing():
    bitmask = torch.zeros(2, WORDS, dtype=torch.int32, device="meta")
    assert masked_logits(torch.zeros(2, VOCABULARY, device="meta"), bitmask).shape == (2, VOCABULARY)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_masking_lives_in_a_cuda_graph():
    logits = torch.randn(2, VOCABULARY, device="cuda")
    bitmask = torch.full((2, WORDS), -1, dtype=torch.int32, device="cuda")
    masked_logits(logits, bitmask)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        masked = masked_logits(logits, bitmask)
    bitmask.copy_(torch.randint(-(2**31), 2**31 - 1, bitmask.shape, dtype=torch.int32))
    graph.replay()
    assert torch.equal(masked.cpu(), masked_logits(logits.cpu(), bitmask.cpu()))


def test_equal_constraints_are_compiled_once():
    assert GRAMMARS.compile(choice("x1", "x2")) is GRAMMARS.compile(choice("x1", "x2"))
    assert GRAMMARS.compile(choice("x1", "x2")) is not GRAMMARS.compile(choice("x2"))


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("choice", (), "there is no choice"),
        ("choice", ["a1", "b2"], "tuple of texts"),
        ("choice", "a1", "tuple of texts"),
        ("choice", ("a1", 3), "tuple of texts"),
        ("choice", ("a1", "\ud800"), "no valid text"),
        ("regex", r"(a|b", "unclosed group"),
        ("regex", r"a(?=b)", "look-ahead"),
        ("regex", r"a\bb", "lookarounds"),
        ("regex", r"[a&&b]", "no text"),
        ("regex", ("a",), "must be a text"),
        ("json_schema", '{"type": ', "no JSON"),
        ("json_schema", "[" * 100_000, "no JSON"),
        ("json_schema", '{"type": "game"}', "Invalid type: game"),
        ("json_schema", '{"$ref": "#/nowhere"}', "nowhere"),
        ("json_schema", '{"propertyNames": {"pattern": "a"}}', "propertyNames"),
        ("json_schema", "false", "Unsatisfiable"),
        ("grammar", "start: x", "choice, regex, json_schema"),
    ],
)
def test_a_constraint_that_cannot_be_obeyed_is_refused_by_name(kind, value, message):
    with pytest.raises(NLRLError, match=rf"(?s)^constraint {kind} .*{message}"):
        GRAMMARS.compile(Constraint(kind, value))


@pytest.fixture(scope="module")
def poor():
    """The grammars of a tokenizer that has neither x nor a lone d."""
    vocabulary = {"<eos>": 0, "a": 1, "b": 2, "ab": 3, "c": 4, "bd": 5}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    return Grammars(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>"), 7, [0])


def test_a_choice_that_the_tokenizer_cannot_write_is_refused(poor):
    poor.compile(choice("abc", "abd"))
    with pytest.raises(NLRLError, match=r"constraint choice \('abc', 'ax'\): the tokenizer cannot write 'ax'"):
        poor.compile(choice("abc", "ax"))
    with pytest.raises(NLRLError, match="'ad'"):
        poor.compile(choice("ad"))
    with pytest.raises(NLRLError, match=r"constraint regex 'x\+': no text"):
        poor.compile(Constraint("regex", "x+"))


def test_a_matcher_that_cannot_go_on_ends_its_answer_and_says_why(poor):
    stuck, fine = start(choice("abd"), poor), start(choice("abc"), poor)
    stuck.accept(3)  # "ab", and there is no "d" alone
    bitmask = torch.zeros(2, 1, dtype=torch.int32)
    fill_batch([stuck, fine], bitmask)
    assert bitmask.tolist() == [[1], [1 << 1 | 1 << 3]]
    assert "no text" in stuck.error
    assert not fine.error


@pytest.mark.parametrize(
    ("vocabulary", "ends", "message"),
    [
        (VOCABULARY, [], "need an end token"),
        (VOCABULARY, [2, TOKENIZER.encode("!")[0]], "special tokens; these are text"),
        (VOCABULARY, [VOCABULARY], "out of range"),
        (len(TOKENIZER) - 1, [2], "too small"),
    ],
)
def test_a_vocabulary_that_cannot_end_an_answer_is_refused(vocabulary, ends, message):
    with pytest.raises(NLRLError, match=message):
        Grammars(TOKENIZER, vocabulary, ends).compile(choice("a"))
