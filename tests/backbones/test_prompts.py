"""Where prompts share their beginning: marks are ends of tokens, and what lies before them is the same everywhere."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nlrl.agents.roles import Roles, StateInput
from nlrl.backbones.checkpoint import read_tokenizer
from nlrl.backbones.engine import Engine
from nlrl.backbones.language_model import Message, Request, Sampling
from nlrl.backbones.loading import load
from nlrl.backbones.prompts import LEAST_SHARED, PromptEncoder
from nlrl.backbones.registry import BUNDLED
from nlrl.envs import make
from nlrl.envs.random import Rng

RULES = "You play a game on a board, and you say what you think of it before you move, in two sentences."
FRAMED = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
GLUED = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
SORTED = "{% for m in messages | reverse %}{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def merging():
    """A tokenizer whose tokens reach over everything: 'ces.XXX' is one."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, show_progress=False, initial_alphabet=letters)
    backend.train_from_iterator(["ences.XXX", "ces.XO", "s.X", "s. 1 | 2", "s.[user]X", "s.[user]O"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def chat(*contents, roles=("system", "user")):
    return tuple(Message(role, content) for role, content in zip(roles, contents, strict=True))


def prompts(tokenizer, template, chats):
    tokenizer.chat_template = template
    return PromptEncoder(tokenizer).prompts([Request(messages=one) for one in chats])


@pytest.mark.parametrize("template", [FRAMED, GLUED])
@pytest.mark.parametrize("turns", [("XXX", "XO", " 1 | 2\nX plays", "O", "?"), ("XXX",)])
def test_what_lies_before_a_mark_is_the_same_in_every_chat_that_begins_alike(merging, template, turns):
    found = prompts(merging, template, [chat(RULES, turn) for turn in turns])
    alone = merging(RULES, add_special_tokens=False)["input_ids"]
    for prompt, turn in zip(found, turns, strict=True):
        (mark,) = prompt.marks
        assert LEAST_SHARED <= mark < len(prompt.tokens)
        before = merging.decode(prompt.tokens[:mark])
        assert turn not in before
        assert len(before) >= len(RULES) - max(map(len, merging.get_vocab()))
        if template == GLUED:
            assert prompt.tokens[:mark] == tuple(alone[:mark])
        for other in found:
            shared = min(mark, *other.marks)
            assert other.tokens[:shared] == prompt.tokens[:shared]


def test_a_token_that_reaches_across_the_end_is_not_shared(merging):
    (crossed,) = prompts(merging, GLUED, [chat(RULES, "XXX")])
    alone = merging(RULES, add_special_tokens=False)["input_ids"]
    assert crossed.tokens[: len(alone)] != tuple(alone)  # or this test would test nothing
    assert crossed.marks[0] < len(alone)


@pytest.mark.parametrize(
    "messages",
    [
        chat("Where?", roles=("user",)),
        chat("No.", "X", roles=("system", "user")),
        chat(RULES, roles=("system",)),
        chat("X", RULES, roles=("user", "system")),
    ],
)
def test_chats_without_a_long_system_part_at_their_beginning_have_no_mark(merging, messages):
    assert prompts(merging, FRAMED, [messages])[0].marks == ()


def test_templates_that_do_more_than_frame_contents_give_no_mark(merging):
    assert prompts(merging, SORTED, [chat(RULES, "X")])[0].marks == ()


def test_tokens_are_as_the_caller_gave_them(merging):
    (prompt,) = PromptEncoder(merging).prompts([Request(tokens=(1, 2, 3))])
    assert prompt == ((1, 2, 3), ())


# -- the prompts of a run ----------------------------------------------------------------------------------------------
def positions(game, count):
    state, out = game.initial_state(Rng("start")), []
    for action in (4, 0, 8, 2, 1)[:count]:
        out.append(state)
        state = game.apply(state, action, Rng("on")).state
    return out


def requests(style):
    game = make("tictactoe")
    role = Roles(game, style).policy
    sampling = Sampling(max_tokens=4)
    return [Request(role.messages(StateInput(state)), sampling=sampling) for state in positions(game, 5)]


def test_instruct_prompts_of_a_role_share_their_instructions_and_plain_ones_nothing():
    encoder = PromptEncoder(read_tokenizer(BUNDLED / "transformer-base"))
    found = encoder.prompts(requests("instruct"))
    assert len({prompt.marks for prompt in found}) == 1
    assert found[0].marks[0] > 0.8 * len(found[0].tokens)
    assert len({prompt.tokens[: prompt.marks[0]] for prompt in found}) == 1
    assert {prompt.marks for prompt in encoder.prompts(requests("plain"))} == {()}


def test_an_engine_reads_instructions_once():
    model, tokenizer = load("transformer-base")
    with Engine(model, tokenizer, max_rows=8, compiled_cpu=False) as engine:
        asked = requests("instruct")
        together = engine.generate(asked)
        figures = engine.metrics()
        shared = PromptEncoder(tokenizer).prompts(asked)[0].marks[0]
        assert figures["prefix_hit_tokens_total"] == 4 * shared
        assert figures["prompt_tokens_read_total"] == figures["prompt_tokens_total"] - 4 * shared
        assert figures["prefix_hit_rate"] > 0.6
    with Engine(model, tokenizer, max_rows=8, compiled_cpu=False) as other:
        assert [other.generate([one])[0].tokens for one in reversed(asked)] == [a.tokens for a in reversed(together)]
