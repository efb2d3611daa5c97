"""What a run says it spent: every request once, whoever asked, and the same after a crash."""

from __future__ import annotations

import json

import pytest

from nlrl.agents.asking import ask
from nlrl.agents.roles import Roles, StateInput
from nlrl.backbones.language_model import Message, Request, Sampling
from nlrl.envs import make
from nlrl.orchestration.budget import Budget, Entry, Meter, Metered, read_ledger, spent_by
from nlrl.orchestration.loop import run
from nlrl.orchestration.run_folder import RunFolder
from nlrl.orchestration.tracking import METRICS_FILE, read_metrics
from nlrl.testing import FaultyModel
from nlrl.testing.by_rules import RuleModel

GAME = make("tictactoe")
POLICY = Roles(GAME).policy
START = GAME.initial_states()[0]


def request(text, seed=0, temperature=1.0):
    return Request((Message("user", text),), sampling=Sampling(temperature=temperature), seed=seed)


@pytest.fixture
def meter(tmp_path):
    meter = Meter()
    meter.open(tmp_path)
    yield meter
    meter.close()


# -- the ledger --------------------------------------------------------------------------------------------------------
def test_equal_keys_count_once_however_often_they_are_taken_down(meter, tmp_path):
    meter.note([Entry(1, 5, 10, 20), Entry(2, 0, 1, 1)])
    meter.note([Entry(1, 5, 10, 20), Entry(3, trained_tokens=7)])
    assert read_ledger(tmp_path) == Budget(5, 11, 21, 7)


def test_a_torn_ledger_loses_its_last_line_only_and_is_written_on(meter, tmp_path):
    meter.note([Entry(1, 1)])
    meter.close()
    with open(tmp_path / "spent.ledger", "ab") as file:
        file.write(b'{"spent":[[2,1,')
    meter.open(tmp_path)
    meter.note([Entry(2, 1)])
    assert read_ledger(tmp_path) == Budget(2)


def test_without_a_stage_nothing_is_kept():
    Meter().note([Entry(1, 1)])


def test_a_stage_without_a_ledger_has_no_budget(tmp_path):
    assert read_ledger(tmp_path) is None


# -- models ------------------------------------------------------------------------------------------------------------
def test_an_identical_request_is_paid_for_once_and_another_seed_or_temperature_again(meter, tmp_path):
    model = Metered(RuleModel(), meter)
    prompt = POLICY.messages(StateInput(START))[0].content
    model.generate([request(prompt), request(prompt)])
    once = read_ledger(tmp_path)
    model.generate([request(prompt)])
    assert read_ledger(tmp_path) == once
    assert once.prompt_tokens == len(prompt)
    model.generate([request(prompt, seed=1), request(prompt, temperature=0.5)])
    assert read_ledger(tmp_path).prompt_tokens == 3 * len(prompt)


def test_failed_answers_are_paid_for(meter, tmp_path):
    model = Metered(FaultyModel(RuleModel(), {0: "illegal"}), meter)
    (reply,) = ask(model, POLICY, [StateInput(START)], Sampling())
    assert len(reply.failures) == 1
    spent = read_ledger(tmp_path)
    assert spent.prompt_tokens == reply.prompt_tokens == 2 * len(POLICY.messages(StateInput(START))[0].content)
    assert spent.generated_tokens == reply.generated_tokens > len(reply.completion.tokens)


# -- runs --------------------------------------------------------------------------------------------------------------
def budgets(folder):
    paths = folder.glob("iterations/*/*/manifest.json")
    return {path.parent.relative_to(folder): json.loads(path.read_text())["metrics"]["budget"] for path in paths}


def test_every_stage_of_a_run_says_what_it_spent(finished):
    found = budgets(finished)
    assert len(found) == 15
    folder = RunFolder(finished)
    games = list(folder.stage(1, "rollout").records())
    rollout = folder.stage(1, "rollout").load()["metrics"]["budget"]
    assert rollout["environment_steps"] == sum(len(game["actions"]) for game in games)
    said = {(turn["reply"], turn["tokens"]) for game in games for turn in game["turns"]}
    assert rollout["generated_tokens"] >= sum(tokens for _, tokens in said) > 0
    targets = folder.stage(1, "targets").load()["metrics"]["budget"]
    samples = [sample for record in folder.stage(1, "targets").records() for sample in record["samples"]]
    assert targets["environment_steps"] == sum(len(sample.split(",")[0].split()) for sample in samples)
    improvement = folder.stage(1, "improvement").load()["metrics"]["budget"]
    assert improvement["environment_steps"] == 0 < improvement["generated_tokens"]


def test_measuring_is_counted_apart_and_all_of_it_is_tracked(finished):
    folder = RunFolder(finished)
    learning, measuring = spent_by(folder.stages()), spent_by(folder.stages(), measuring=True)
    total = Budget()
    for budget in budgets(finished).values():
        total = total.plus(Budget(**budget))
    assert learning.plus(measuring) == total
    assert min(learning.environment_steps, measuring.environment_steps) > 0
    metrics = read_metrics(finished / METRICS_FILE)[1]["metrics"]
    assert metrics["rollout/budget/environment_steps"] > 0


class Counting:
    """A trainer that says how many tokens it read."""

    def __new__(cls):
        from nlrl.testing.by_rules import LookupTrainer

        class Trainer(LookupTrainer):
            def fit(self, network, examples, settings):
                return super().fit(network, examples, settings) | {"tokens": 100 * len(examples)}

        return Trainer()


def test_what_was_trained_on_is_the_trainers_count(small_config, tmp_path, watched, monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules["watched_model"], "make_trainer", Counting)
    folder = run(small_config(tmp_path / "run", model=watched.config, iterations=1)).path
    for network in ("critic", "actor"):
        metrics = RunFolder(folder).stage(1, network).load()["metrics"]
        assert metrics["budget"]["trained_tokens"] == metrics["tokens"] == 100 * metrics["examples"] > 0
