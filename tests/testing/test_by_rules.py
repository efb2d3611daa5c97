"""The rule-following model: right in every role of the corpus, deterministic, and taught by heart."""

from __future__ import annotations

from itertools import islice

import pytest

from nlrl.agents.corpus import CorpusSettings, examples
from nlrl.agents.corpus.study import ROLE_OF
from nlrl.agents.parser import ParseFailure
from nlrl.agents.roles import ActionInput, Roles, StateInput
from nlrl.backbones.language_model import LanguageModel, Message, Request
from nlrl.envs import make
from nlrl.orchestration.trainer import FitSettings, TextExample
from nlrl.testing.by_rules import LookupTrainer, RuleModel, make_model, make_trainer

GAME = make("tictactoe")
ROLES = Roles(GAME)
START = GAME.initial_states()[0]
SETTINGS = FitSettings(1e-3, 8, 1, 0)
MODEL = RuleModel()


def take(count, *roles):
    return list(islice(examples(CorpusSettings(roles=roles), 3), count))


def answer(prompt, seed=0, model=None):
    return (model or MODEL).generate([Request((Message("user", prompt),), seed=seed)])[0]


@pytest.mark.parametrize("role", ["g1_games", "g1_outlooks", "g2", "improvement"])
def test_it_answers_every_prompt_of_the_roles_that_aggregate_as_the_corpus_does(role):
    for example in take(200, role):
        said = answer(example.messages[-1].content)
        output = getattr(ROLES, ROLE_OF.get(role, role)).parse(example.inp, said)
        assert not isinstance(output, ParseFailure), (example.messages[-1].content, said.text)
        found = output.action if role == "improvement" else output.verdict
        assert found == pytest.approx(example.answer, abs=0.0101)


@pytest.mark.parametrize("role", ["policy", "q", "v"])
def test_it_answers_what_has_no_right_answer_differently_for_each_seed_and_readably(role):
    for example in take(30, role):
        said = [answer(example.messages[-1].content, seed) for seed in range(8)]
        outputs = [getattr(ROLES, role).parse(example.inp, one) for one in said]
        assert not any(isinstance(output, ParseFailure) for output in outputs)
        assert [one.text for one in said] == [answer(example.messages[-1].content, seed).text for seed in range(8)]
    start = [answer(ROLES.policy.messages(StateInput(START))[-1].content, seed).text for seed in range(60)]
    assert len(set(start)) == 9


def test_it_is_a_language_model_that_counts_tokens():
    assert isinstance(make_model(), LanguageModel)
    said = answer("What is this?")
    assert said.text == "I do not know this prompt."
    assert len(said.tokens) == len(said.logprobs) > 0
    assert said.prompt_tokens > 0


def test_answers_do_not_depend_on_the_batch():
    prompts = [example.messages[-1].content for example in take(40)]
    requests = [Request((Message("user", prompt),), seed=i) for i, prompt in enumerate(prompts)]
    together = RuleModel().generate(requests)
    assert together == [MODEL.generate([request])[0] for request in requests[::-1]][::-1]


# -- the trainer -------------------------------------------------------------------------------------------------------
PROMPT = ROLES.q.messages(ActionInput(START, 4))


def taught(*texts, prompt=PROMPT, network="critic"):
    trainer = make_trainer()
    trainer.fit(network, [TextExample(prompt, text) for text in texts], SETTINGS)
    return trainer


def said_by(trainer, network="critic", prompt=PROMPT):
    model = RuleModel()
    model.load_weights(trainer.weights(network), f"{network}@1")
    return answer(prompt[-1].content, model=model)


def test_it_learns_the_mean_verdict_and_says_it_in_text_and_ending():
    trainer = taught(*(f"I put O at {v}, so.\nfinal_evaluation: {v}" for v in ("+1.00", "+0.00", "+0.50", "+0.50")))
    said = said_by(trainer)
    assert said.text == "I put O at +0.50, so.\nfinal_evaluation: +0.50"
    assert said.weight_version == "critic@1"


def test_it_learns_the_last_argument_of_the_actor():
    prompt = ROLES.policy.messages(StateInput(START))
    trainer = taught(
        "I prefer 5 at +0.50.\nbest_move: 5", "I prefer 1 at +0.10.\nbest_move: 1", prompt=prompt, network="actor"
    )
    assert said_by(trainer, "actor", prompt).text == "I prefer 1 at +0.10.\nbest_move: 1"


def test_networks_learn_apart_and_what_was_not_taught_follows_the_rules():
    trainer = taught("final_evaluation: +0.90")
    assert trainer.weights("actor") == {}
    other = ROLES.q.messages(ActionInput(START, 3))
    assert said_by(trainer, prompt=other).text == answer(other[-1].content).text


def test_weights_survive_a_file(tmp_path):
    trainer = taught("final_evaluation: +0.90")
    trainer.save("critic", str(tmp_path / "weights"))
    again = LookupTrainer()
    again.load("critic", str(tmp_path / "weights"))
    assert said_by(again).text == said_by(trainer).text == "final_evaluation: +0.90"


def test_later_lessons_add_to_earlier_ones_and_replace_them():
    trainer = taught("final_evaluation: +0.90")
    other = ROLES.q.messages(ActionInput(START, 3))
    trainer.fit("critic", [TextExample(other, "final_evaluation: -0.10")], SETTINGS)
    trainer.fit("critic", [TextExample(PROMPT, "final_evaluation: +0.20")], SETTINGS)
    assert said_by(trainer).text.endswith("+0.20")
    assert said_by(trainer, prompt=other).text.endswith("-0.10")
