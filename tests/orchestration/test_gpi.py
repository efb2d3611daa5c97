"""Language GPI by prompting: one batch a role, nothing asked twice, nothing trained, and sweeps that find the way."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from nlrl.envs import make_from_spec
from nlrl.envs.oracle import oracle_for
from nlrl.envs.random import Rng
from nlrl.errors import NLRLError
from nlrl.orchestration.checks import check
from nlrl.orchestration.loop import run
from nlrl.orchestration.players import Play
from nlrl.orchestration.report import headline, report
from nlrl.orchestration.run_folder import RunFolder, verify
from nlrl.orchestration.stages import sweep
from nlrl.orchestration.stages.planned_walks import references, run_walks
from nlrl.orchestration.stages.sweep import plans_made, run_sweep
from nlrl.testing.by_game_rules import GameRuleModel

MAZE = "maze(layout=umaze,observed=full)"
LAKE = "frozen_lake(layout=SFF/FHF/FFG,slippery=True)"
TASKS = ("Value the position", "Join the steps", "Judge the move", "Compare the moves")


def on(spec, **gpi):
    game = make_from_spec(spec)
    model = {"kind": "scripted", "name": "nlrl.testing.by_game_rules", "options": {"game": spec}}
    settings = {"variations": 3, "plans": 2, "repeats": 2, "lookahead": 2} | gpi
    return {
        "method": "gpi",
        "game": {"name": game.name, "params": game.params},
        "model": model,
        "gpi": settings,
        "evaluation": {"opponents": ["none"], "probes": []},
    }


def records(session, stage, iteration=1):
    return list(session.folder.stage(iteration, stage).records())


class Watched(GameRuleModel):
    def __init__(self, spec, log):
        super().__init__(spec)
        self._log = log

    def generate(self, requests):
        self._log.append(list(requests))
        return super().generate(requests)


@pytest.fixture
def watched_maze(watched, session, monkeypatch):
    """A session of gpi in the maze, and what its model was asked, call by call."""
    import sys

    calls = []
    monkeypatch.setattr(sys.modules["watched_model"], "make_model", lambda: Watched(MAZE, calls))
    return session(**on(MAZE) | {"model": watched.config}), calls


def task(request):
    return request.messages[-1].content.split("\n")[0]


# -- a sweep -----------------------------------------------------------------------------------------------------------
def test_every_state_gets_its_plans_with_every_action_evaluated(session):
    one = session(**on(MAZE))
    run_sweep(one, 1)
    found, states = records(one, "improvement"), one.game.initial_states()
    assert Counter(record["state"] for record in found) == {one.game.to_text(state): 4 for state in states}
    assert Counter((record["repeat"], record["plan"]) for record in found) == {
        (repeat, plan): len(states) for repeat in (0, 1) for plan in (0, 1)
    }
    for record in found:
        assert sorted(c["action"] for c in record["candidates"]) == [0, 1, 2, 3]
        best = max(c["verdict"] for c in record["candidates"])
        (chosen,) = [c["verdict"] for c in record["candidates"] if c["action"] == record["action"]]
        assert chosen == best
        assert record["text"].endswith(one.game.action_text(states[0], record["action"]))
    assert len({json.dumps(record["candidates"]) for record in found}) > len(states)  # look-aheads of their own


def test_roles_are_asked_in_one_batch_each_and_nothing_twice(watched_maze):
    one, calls = watched_maze
    run_sweep(one, 1)
    kinds = [sorted({task(request) for request in requests}) for requests in calls]
    assert all(len(kind) == 1 for kind in kinds)
    order = [kind[0].split(".")[0] for kind in kinds]
    assert [name[:14] for name in order] == [name[:14] for name in TASKS]
    assert max(Counter(request for requests in calls for request in requests).values()) == 1
    assert len(calls[0]) <= len(one.game.initial_states())


def test_a_later_sweep_asks_what_was_said_and_not_the_model(watched_maze):
    one, calls = watched_maze
    run_sweep(one, 1)
    calls.clear()
    run_sweep(one, 2)
    assert not [request for requests in calls for request in requests if task(request).startswith(TASKS[0])]
    said = {c["text"] for record in records(one, "improvement", 1) for c in record["candidates"]}
    asked = [request.messages[-1].content for requests in calls for request in requests]
    successors = [prompt.split("then: ")[1] for prompt in asked if "then: " in prompt]
    assert {text for text in successors if text != "the game is over."} <= said


@pytest.mark.parametrize("following", [0, 2, 3])
def test_look_aheads_follow_the_plans_of_the_sweep_before(session, monkeypatch, following):
    one, fuse, found = session(**on(MAZE, following=following, lookahead=4)), sweep.fuse, []
    monkeypatch.setattr(sweep, "fuse", lambda at, aheads, ends: (found.extend(aheads), fuse(at, aheads, ends))[1])
    run_sweep(one, 1)
    drawn, plans = len(found), plans_made(one, 1)
    run_sweep(one, 2)
    choices: dict = {}
    for (_, state), made in plans.items():
        choices.setdefault(state, set()).update(plan.action for plan in made)
    lines = [ahead.line for ahead in found[drawn:]]
    assert len(lines) == drawn
    planned = [
        all(a in choices[s] for s, a in list(zip(line.states, line.actions, strict=False))[1:]) for line in lines
    ]
    followed = [at % 3 < following for at in range(drawn)]
    assert all(is_planned for is_planned, follows in zip(planned, followed, strict=True) if follows)
    assert all(planned) == (following == 3), "the others are random"


def test_plans_that_are_followed_are_walked_by_turns(session):
    """Two plans of a state that bump into a wall: a look-ahead that comes back tries the other one."""
    one = session(**on(MAZE))
    start = one.game.initial_states()[0]
    bumps = [action for action in one.game.legal_actions(start) if one.game.apply(start, action).state == start]
    plans = {(0, start): [sweep.Known(action, None) for action in bumps]}
    walks = []
    for first in (0, 1):
        walk = Play(start, 0, "none", Rng(0))
        sweep.walk_on(one.game, walk, 0, plans, longest=3, first=first)
        walks.append(walk.actions)
    turns = [bumps[i % len(bumps)] for i in range(4)]
    assert walks == [turns[:3], turns[1:]]


def test_a_walk_leaves_a_state_as_most_of_its_plans_would(session):
    one = session(**on(MAZE))
    start = one.game.initial_states()[0]
    bumps = [action for action in one.game.legal_actions(start) if one.game.apply(start, action).state == start]
    rare, frequent = bumps[:2]
    plans = {(0, start): [sweep.Known(action, None) for action in (rare, frequent, frequent)]}
    walk = Play(start, 0, "none", Rng(0))
    sweep.walk_on(one.game, walk, 0, plans, longest=5)
    assert walk.actions == [frequent, rare, frequent, frequent, frequent]


def test_more_that_follow_than_there_are_is_refused(session):
    with pytest.raises(NLRLError, match="following"):
        session(**on(MAZE, following=4))


def test_nothing_is_trained_and_evidence_is_not_cited(session):
    one = session(**on(MAZE))
    run_sweep(one, 1)
    assert one.versions == {"actor": "base", "critic": "base"}
    texts = [c["text"] for record in records(one, "improvement") for c in record["candidates"]]
    assert not any("outlooks" in text for text in texts)


# -- walks -------------------------------------------------------------------------------------------------------------
def test_walks_start_everywhere_in_every_repeat_and_follow_the_plans(session):
    one = session(**on(MAZE))
    run_sweep(one, 1)
    metrics = run_walks(one, 1)
    plans, game = plans_made(one, 1), one.game
    walks = [record for record in records(one, "evaluation") if record["kind"] == "game"]
    starts = {game.to_text(state) for state in game.initial_states()}
    assert Counter((record["repeat"], record["start"]) for record in walks) == {
        (r, s): 1 for r in (0, 1) for s in starts
    }
    for record in walks:
        state, visits, total = game.parse_text(record["start"]), Counter(), 0.0
        for action in record["actions"]:
            choices = [plan.action for plan in plans[record["repeat"], state]]
            assert action == [choices[0], *choices][visits[state] % 3], "of two plans none is the more frequent one"
            visits[state] += 1
            step = game.apply(state, action)
            state, total = step.state, total + step.rewards[0]
        cut = not game.is_terminal(state)
        assert record["result"] == ("cut" if cut else "win")
        assert record["return"] == total + (game.truncation_reward if cut else 0)
    row = metrics["sampled"]["greedy"]["none"]
    assert row["games"] == len(walks)
    assert row["return"]["mean"] == pytest.approx(sum(r["return"] for r in walks) / len(walks), abs=1e-4)
    assert row["return"]["low"] <= row["return"]["mean"] <= row["return"]["high"]


def test_the_best_possible_and_random_moves_stand_beside():
    game = make_from_spec("maze(layout=double_t,observed=full)")
    found = references(game)
    assert found["optimum"] == pytest.approx(-6.84)
    assert found["random"] == pytest.approx(-85.9, abs=0.05)


@pytest.mark.parametrize("lookahead", [1, 3])
def test_sweeps_find_the_shortest_ways_even_if_the_model_knows_nothing(small_config, tmp_path, lookahead):
    fields = on(MAZE, lookahead=lookahead, variations=6, plans=1, repeats=1) | {"iterations": 7}
    folder = RunFolder(run(small_config(tmp_path / "run", **fields)).path)
    returns = [
        folder.stage(i, "evaluation").load()["metrics"]["sampled"]["greedy"]["none"]["return"]["mean"]
        for i in range(1, 8)
    ]
    assert returns[-1] == references(make_from_spec(MAZE))["optimum"] == -2.5
    assert returns[0] < -30
    assert verify(folder.path) == []
    assert not (folder.path / "agent").exists()
    assert "Greedy walks" in shown(report(folder.path))
    assert "-2.5" in shown(report(folder.path))
    assert "won against none" in headline(folder.stage(7, "evaluation").load()["metrics"])


def shown(renderable):
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def test_chance_is_no_obstacle(small_config, tmp_path, committed_files):
    fields = on(LAKE, variations=9, lookahead=1, plans=1) | {"iterations": 4}
    first = run(small_config(tmp_path / "first", **fields)).path
    second = run(small_config(tmp_path / "second", **fields | {"rollout": {"workers": 3}})).path
    assert committed_files(first) == committed_files(second)
    game = make_from_spec(LAKE)
    regrets = [
        oracle_for(game).regret(game.parse_text(record["state"]), record["action"])
        for record in RunFolder(first).stage(4, "improvement").records()
    ]
    assert sum(regrets) / len(regrets) < 0.1


# -- refusals and other models -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"game": {"name": "tictactoe", "params": {}}}, "game: method 'gpi' walks alone; tictactoe is a game for 2"),
        ({"game": {"name": "frozen_lake", "params": {"layout": "random", "maps": 3000}}}, "game: .*more than 20,000"),
        ({"gpi": {"policy": "nobody"}}, "gpi.policy: unknown opponent 'nobody'"),
    ],
)
def test_what_cannot_be_swept_over_is_refused(small_config, tmp_path, changes, complaint):
    fields = on(MAZE) | {
        "model": {"kind": "openai", "name": "m", "base_url": "http://127.0.0.1:1/v1", "style": "plain"}
    }
    fields["evaluation"] = (
        {"opponents": ["random"], "probes": [""]} if "tictac" in str(changes) else fields["evaluation"]
    )
    with pytest.raises(NLRLError, match=complaint):
        check(small_config(tmp_path / "run", **fields | changes))


def test_a_model_that_cannot_be_trained_may_be_prompted(small_config, tmp_path):
    fields = on(MAZE)
    fields["model"] = {"kind": "openai", "name": "m", "base_url": "http://127.0.0.1:1/v1", "style": "plain"}
    check(small_config(tmp_path / "run", **fields))
