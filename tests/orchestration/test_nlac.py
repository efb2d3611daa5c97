"""NLAC: single transitions, backups that are right in the mean, a replay that outlives its policies, and refinement."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType

import pytest

from nlrl.agents.language import NO_MOVE
from nlrl.agents.roles import ActionInput, StateInput
from nlrl.backbones.language_model import Completion, Request
from nlrl.envs import make_from_spec
from nlrl.envs.opponents import make_opponent
from nlrl.envs.oracle import oracle_for
from nlrl.errors import NLRLError
from nlrl.orchestration.checks import check
from nlrl.orchestration.config import to_toml
from nlrl.orchestration.loop import run
from nlrl.orchestration.methods import nlac
from nlrl.orchestration.run_folder import RunFolder, verify
from nlrl.orchestration.stages import backup, refinement
from nlrl.orchestration.stages.backup import examples_of, run_backup
from nlrl.orchestration.stages.refinement import critiques, run_refinement
from nlrl.orchestration.stages.rollout import run_rollout
from nlrl.orchestration.stages.transitions import replayed, transitions_of
from nlrl.testing.by_game_rules import GameRuleModel

GAME = make_from_spec("tictactoe")
START = GAME.initial_states()[0]
NLAC = {"method": "nlac", "critic": {"replay_fraction": 0}, "actor": {"replay_fraction": 0}}


def on(spec, **changes):
    game = make_from_spec(spec)
    model = {"kind": "scripted", "name": "nlrl.testing.by_game_rules", "options": {"game": spec}}
    return NLAC | {"game": {"name": game.name, "params": game.params}, "model": model} | changes


def records(session, stage, iteration=1):
    return list(session.folder.stage(iteration, stage).records())


def game_of(seat, actions, result):
    return {"start": GAME.to_text(START), "seat": seat, "actions": actions, "result": result}


def pieces(seat, actions, result):
    return [(t.line.actions, t.is_open, t.ply) for t in transitions_of(GAME, game_of(seat, actions, result))]


def stages(one, iteration, *names):
    for name, stage in nlac.METHOD.stages:
        if not names or name in names:
            with one.spending(iteration, name):
                stage(one, iteration)


def install(one, part, texts):
    """Has a part answer from these texts, by prompt, and by rules elsewhere."""
    version = f"{part}@given"
    one.student.router.put_weights(part, version, texts)
    for worker in one.workers:
        worker.call("note_weights", part, version, (texts,)).result()
    one.versions[part] = version


# -- transitions -------------------------------------------------------------------------------------------------------
def test_a_transition_ends_where_the_policy_decides_next_or_the_game_is_over():
    won = [0, 3, 1, 4, 2]
    assert pieces(0, won, "win") == [((0, 3), True, 0), ((1, 4), True, 2), ((2,), False, 4)]
    assert pieces(1, won, "loss") == [((3, 1), True, 1), ((4, 2), False, 3)]


def test_where_the_policy_forfeited_it_has_to_decide_again_and_where_the_opponent_did_the_game_is_over():
    assert pieces(0, [0, 3], "forfeit") == [((0, 3), True, 0)]
    assert pieces(0, [0], "win") == [((0,), False, 0)]
    assert pieces(0, [], "forfeit") == pieces(1, [], "win") == pieces(1, [0], "forfeit") == []


def test_a_cut_walk_has_not_ended_and_a_reply_without_a_move_is_no_action():
    maze = make_from_spec("maze(layout=umaze,observed=full)")
    walk = {"start": maze.to_text(maze.initial_states()[0]), "seat": 0, "actions": [0, NO_MOVE, 0], "result": "cut"}
    found = list(transitions_of(maze, walk))
    assert [(t.ply, t.is_open) for t in found] == [(0, True), (2, True)]


def test_equal_transitions_are_one_that_counts_as_often(session):
    one = session(**NLAC, rollout={"games": 40})
    for iteration in (1, 2):
        run_rollout(one, iteration)
    games = [record for i in (1, 2) for record in records(one, "rollout", i)]
    counts = Counter((t.line, t.is_open) for record in games for t in transitions_of(GAME, record))
    chosen, figures = replayed(one, 2)
    assert {(r.transition.line, r.transition.is_open): r.seen for r in chosen} == counts
    assert figures["duplicates"] == counts.total() - len(counts)
    assert set(figures["by_iteration"]) == {"1", "2"}


def test_the_replay_may_be_small_or_on_policy(session):
    few = session(**NLAC, nlac={"replay": {"size": 7}})
    recent = session(**NLAC, nlac={"replay": {"kind": "recent"}})
    for one in (few, recent):
        for iteration in (1, 2):
            run_rollout(one, iteration)
    assert len(replayed(few, 2)[0]) == 7
    assert set(replayed(recent, 2)[1]["by_iteration"]) == {"2"}


# -- backups -----------------------------------------------------------------------------------------------------------
class Exact(dict):
    """Texts that tell the exact value of every move under uniformly random play."""

    def __init__(self, roles):
        super().__init__()
        self.oracle = oracle_for(GAME).policy_value(make_opponent("random", GAME))
        for state in oracle_for(GAME).table.states:
            for action in () if GAME.is_terminal(state) else GAME.legal_actions(state):
                value, me = self.value(state, action), GAME.player_names[GAME.current_player(state)]
                prompt = roles.q.messages(ActionInput(state, action))[-1].content
                self[prompt] = f"I put {me} at {value:+.2f}.\nfinal_evaluation: {value:+.2f}"

    def value(self, state, action):
        return self.oracle.q_values(state)[action]


def test_with_exact_successors_every_backup_is_that_of_its_transition_and_their_mean_is_exact(session):
    one = session(**NLAC, rollout={"games": 200, "samples_per_state": 8, "samples_at_start": 8})
    exact = Exact(one.student_roles)
    install(one, "target", exact)
    run_rollout(one, 1)
    run_backup(one, 1)
    off, weights = 0.0, 0.0
    for record in records(one, "targets"):
        state, action = GAME.parse_text(record["state"]), record["action"]
        end, me = state, GAME.current_player(state)
        for move in record["moves"]:
            end = GAME.apply(end, move).state
        wanted = GAME.returns(end)[me] if GAME.is_terminal(end) else exact.value(end, record["next"])
        assert record["verdict"] == pytest.approx(wanted, abs=0.0051)
        assert (record["next"] is None) == GAME.is_terminal(end)
        assert record["successor"] == "target@given"
        off += record["weight"] * (record["verdict"] - exact.value(state, action))
        weights += record["weight"]
    assert weights == sum(len(list(transitions_of(GAME, game))) for game in records(one, "rollout")) > 500
    assert abs(off / weights) < 0.05


def test_old_transitions_are_backed_up_with_what_the_current_policy_plays(session):
    one = session(**NLAC)
    run_rollout(one, 1)
    last = {}
    for state in oracle_for(GAME).table.states:
        if not GAME.is_terminal(state):
            move = GAME.legal_actions(state)[-1] + 1
            last[one.student_roles.policy.messages(StateInput(state))[-1].content] = f"I try {move}.\nbest_move: {move}"
    run_backup(one, 1)
    install(one, "actor", last)
    run_rollout(one, 2)
    run_backup(one, 2)
    first, second = ({tuple(r["moves"]): r for r in records(one, "targets", i)} for i in (1, 2))
    assert len(set(first) & set(second)) == len(first)  # nothing is forgotten
    followed = [(moves, r) for moves, r in second.items() if r["next"] is not None]
    ends = {moves: GAME.parse_text(r["state"]) for moves, r in followed}
    for moves, record in followed:
        for move in moves:
            ends[moves] = GAME.apply(ends[moves], move).state
        assert record["next"] == GAME.legal_actions(ends[moves])[-1]
    assert any(first[moves]["next"] != record["next"] for moves, record in followed if moves in first)


def test_a_policy_that_forfeits_next_has_lost(session):
    one = session(**NLAC)
    run_rollout(one, 1)
    silent = {
        one.student_roles.policy.messages(StateInput(state))[-1].content: "Hard to say."
        for state in oracle_for(GAME).table.states
        if not GAME.is_terminal(state)
    }
    install(one, "actor", silent)
    run_backup(one, 1)
    found = [r for r in records(one, "targets") if r["ply"] < 4]
    assert len(found) > 10
    assert {r["verdict"] for r in found} == {-1.0}
    assert all("forfeits" in sample or "-1.00" in sample for r in found for sample in r["samples"])


def test_the_successor_model_learns_every_move_alike_and_its_transitions_by_how_often_they_were_met(session):
    one = session(**NLAC, rollout={"games": 60})
    stages(one, 1, "rollout", "targets")
    prompts = defaultdict(float)
    for example in examples_of(one, 1):
        prompts[example.messages] += example.weight
        assert "outlooks" not in example.completion
    assert list(prompts.values()) == pytest.approx([1.0] * len(prompts))
    pair = max(Counter((r["state"], r["action"]) for r in records(one, "targets")).items(), key=lambda p: p[1])[0]
    mine = [r for r in records(one, "targets") if (r["state"], r["action"]) == pair]
    prompt = one.student_roles.q.messages(ActionInput(GAME.parse_text(pair[0]), pair[1]))
    found = sorted(e.weight for e in examples_of(one, 1) if e.messages == prompt)
    assert found == pytest.approx(sorted(r["weight"] / sum(r["weight"] for r in mine) for r in mine))


@pytest.mark.parametrize("moves", [True, False])
def test_values_become_true_by_the_backup_alone(session, monkeypatch, moves):
    """The policy stays as it is; with target weights that never change nothing is learned but how games end."""
    one = session(**NLAC, nlac={"decay": 0}, rollout={"games": 60, "samples_per_state": 1, "samples_at_start": 1})
    if not moves:
        monkeypatch.setattr(type(one), "target", property(lambda self: self._part("nobody")))
    errors = []
    for iteration in (1, 2, 3, 4, 5):
        stages(one, iteration, "rollout", "targets", "critic", "average")
        errors.append(error(one, iteration))
    assert errors[0] > 0.25
    assert (errors[-1] < 0.15) == moves


def error(one, iteration):
    """How far the successor model's verdicts are from the mean result of all games that went through (s, a)."""
    results = defaultdict(list)
    for record in (record for i in range(1, iteration + 1) for record in records(one, "rollout", i)):
        for found in transitions_of(GAME, record):
            results[found.line.start, found.line.actions[0]].append(RESULTS[record["result"]])
    pairs = [pair for pair, found in results.items() if len(found) > 2]
    said = one.critic.generate(
        [Request(one.student_roles.q.messages(ActionInput(*pair)), sampling=one.sampling(0.0)) for pair in pairs]
    )
    off = [
        abs(float(text.text.rsplit(" ", 1)[1]) - sum(results[pair]) / len(results[pair]))
        for pair, text in zip(pairs, said, strict=True)
    ]
    return sum(off) / len(off)


RESULTS = {"win": 1.0, "draw": 0.0, "loss": -1.0}


# -- the target weights ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_the_target_is_a_running_mean_that_begins_with_the_first_successor_model(session, decay):
    one = session(**NLAC, nlac={"decay": decay})
    critics, means = [], []
    for iteration in (1, 2, 3):
        stages(one, iteration, "rollout", "targets", "critic", "average")
        critics.append(verdicts(one, "critic"))
        means.append(verdicts(one, "target"))
    assert means[0] == critics[0]
    assert one.versions["target"] == "target@3"
    assert {r["successor"] for r in records(one, "targets", 3)} == {"target@2"}
    for before, critic, mean in zip(means, critics[1:], means[1:], strict=False):
        for prompt in before.keys() & critic.keys():
            assert mean[prompt] == pytest.approx(decay * before[prompt] + (1 - decay) * critic[prompt], abs=0.0051)
    assert decay == 0 or means[2] != critics[2]


def verdicts(one, network):
    texts = one.trainer.call("weights", network).result()
    return {prompt: float(text.rsplit(" ", 1)[1]) for prompt, text in texts.items()}


def test_weights_of_a_network_are_averaged_and_read_back(tmp_path):
    import torch
    from safetensors.torch import save_file

    from nlrl.orchestration.trainer import TrainerActor

    trainer, fresh = (TrainerActor("transformer-base", "cpu", threads=1) for _ in range(2))
    base = trainer.weights("critic")
    save_file({name: tensor + 1 for name, tensor in base.items()}, tmp_path / "trained")
    trainer.average("critic", "target", 0.25)
    trainer.load("critic", str(tmp_path / "trained"))
    assert all(tensor.equal(base[name]) for name, tensor in trainer.weights("target").items())
    trainer.average("critic", "target", 0.25)
    mean = trainer.weights("target")
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, base[name] + 0.25)
    assert all(tensor.equal(base[name] + 1) for name, tensor in trainer.weights("critic").items())
    trainer.save("target", str(tmp_path / "target"))
    fresh.load("target", str(tmp_path / "target"))
    assert all(tensor.equal(mean[name]) for name, tensor in fresh.weights("target").items())
    assert all(tensor.equal(base[name]) for name, tensor in fresh.weights("critic").items())


# -- refinement --------------------------------------------------------------------------------------------------------
BEFORE = ("rollout", "targets", "policy", "critic", "average")


def test_without_a_prompt_for_it_i_chooses_between_the_proposal_and_what_is_said_when_asked_again(session):
    one = session(**NLAC, nlac={"proposals": 3}, rollout={"games": 40})
    stages(one, 1, *BEFORE)
    run_refinement(one, 1)
    found, revised = records(one, "improvement"), 0
    for record in found:
        judged = {c["action"]: c["verdict"] for c in record["candidates"]}
        assert 1 <= len(judged) <= 2
        assert record["proposal"] in judged
        assert judged[record["action"]] == max(judged.values())
        revised += record["action"] != record["proposal"]
        assert record["target"].endswith(f"best_move: {record['action'] + 1}")
        assert ("I prefer" in record["target"]) == (len(judged) == 2)
    assert 0.1 < revised / len(found) < 0.6
    metrics = one.folder.stage(1, "improvement").load()["metrics"]
    assert metrics["revised"] == pytest.approx(revised / len(found))
    assert metrics["gain"] > 0.05
    assert Counter(record["state"] for record in found)[GAME.to_text(START)] == 3


def test_more_rounds_look_at_more_moves(session):
    seen = []
    for rounds in (1, 4):
        one = session(**NLAC, nlac={"rounds": rounds}, rollout={"games": 24})
        stages(one, 1, *BEFORE)
        run_refinement(one, 1)
        found = [record for record in records(one, "improvement") if record["ply"] < 2]
        assert all(r["action"] in {c["action"] for c in r["candidates"]} for r in found)
        seen.append(sum(len(record["candidates"]) for record in found) / len(found))
    assert seen[0] <= 2 < seen[1] - 0.5


class Refiner:
    """A chat model that moves to the centre where its critique is bad, and otherwise stays."""

    name, reads_expectations, weight_version = "refiner", False, "refiner@0"

    def __init__(self):
        self.prompts = []

    def generate(self, requests):
        self.prompts += [request.messages for request in requests]
        return [Completion(self.answer(request.messages[-1].content), (1,), (0.0,), "stop", "") for request in requests]

    def answer(self, prompt):
        lines = dict(line.split(": ", 1) for line in prompt.split("\n") if ": " in line)
        free = prompt.partition("Free cells: ")[2].split("\n")[0].split()
        bad = "-" in lines["Critique"].rpartition("evaluation: ")[2]
        return f"I see.\nbest_move: {'5' if bad and '5' in free else lines['The move in mind']}"


def test_a_chat_model_is_shown_the_critique_of_its_move_and_may_revise_it(session, monkeypatch):
    module, model = ModuleType("refiner"), Refiner()
    monkeypatch.setattr(module, "make_model", lambda: model, raising=False)
    monkeypatch.setitem(sys.modules, "refiner", module)
    one = session(**NLAC, nlac={"summaries": 0}, rollout={"games": 40})
    stages(one, 1, *BEFORE)
    chat = session(**NLAC, teacher={"kind": "scripted", "name": "refiner", "style": "instruct"})
    one.teacher, one.teacher_roles = chat.teacher, chat.teacher_roles
    run_refinement(one, 1)
    kept = moved = 0
    for record in records(one, "improvement"):
        said = {c["action"]: c["verdict"] for c in record["candidates"]}
        free = GAME.legal_actions(GAME.parse_text(record["state"]))
        wanted = 4 if said[record["proposal"]] < 0 and 4 in free else record["proposal"]
        assert record["action"] == wanted
        assert set(said) == {record["proposal"], wanted}  # the revision is critiqued, too
        kept, moved = kept + (wanted == record["proposal"]), moved + (wanted != record["proposal"])
    assert kept > 5
    assert moved > 5
    assert all("think again" in messages[0].content for messages in model.prompts)


def test_the_evaluator_merges_k_sampled_summaries(session, watched):
    one = session(**NLAC, nlac={"summaries": 2}, model=watched.config)
    state = GAME.apply(START, 4).state
    pairs = [(state, action) for action in GAME.legal_actions(state)]
    said = critiques(one, pairs)
    asked = [request for _, requests in watched.calls for request in requests]
    summaries = [request for request in asked if request.messages[-1].content.startswith("Value the move.")]
    assert len(summaries) == 2 * len(pairs)
    assert all(request.sampling.temperature == 1 for request in summaries)
    prompts = [prompt for r in asked if (prompt := r.messages[-1].content).startswith("Judge the move from these outl")]
    assert len(prompts) == len(pairs)
    for (_, action), prompt in zip(pairs, prompts, strict=True):
        numbers = [float(found) for found in re.findall(r"^outlook \d: .*X at ([+-]\d\.\d\d)", prompt, re.MULTILINE)]
        assert len(numbers) == 2
        assert said[state, action].verdict == pytest.approx(sum(numbers) / 2, abs=0.0051)
        assert "outlooks" not in said[state, action].text


def test_no_games_are_played_but_those_of_the_rollout(session):
    one = session(**NLAC)
    stages(one, 1)
    spent = {name: one.folder.stage(1, name).load()["metrics"]["budget"] for name, _ in nlac.METHOD.stages}
    assert {name for name, budget in spent.items() if budget["environment_steps"]} == {"rollout", "evaluation"}
    assert all(spent[name]["generated_tokens"] > 0 for name in ("rollout", "targets", "improvement"))


# -- whole runs --------------------------------------------------------------------------------------------------------
LAKE = "frozen_lake(layout=SFF/FHF/FFG,slippery=True)"
ALONE = {"games": 0, "opponents": ["none"], "probes": []}


def test_it_plays_games_for_one_with_chance_and_ends_with_an_agent(small_config, tmp_path):
    folder = run(small_config(tmp_path / "run", **on(LAKE, rollout={"games": 12}, evaluation=ALONE))).path
    assert verify(folder) == []
    assert (folder / "agent").is_dir()
    found = list(RunFolder(folder).stage(2, "targets").records())
    assert {len(record["moves"]) for record in found} == {1}
    outcomes = Counter((record["state"], record["action"]) for record in found)
    assert max(outcomes.values()) > 2


def killed_in(command, folder, iteration, name):
    """Whether a run could be killed (-9) as soon as one of its stages had left a trace."""
    begun = folder / f"iterations/{iteration:03d}/{name}"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not begun.exists():
        time.sleep(0.001)
    process.kill()
    return process.wait() == -signal.SIGKILL


class Interrupted(BaseException):
    """What nobody catches."""


def test_a_run_that_is_interrupted_amid_its_stages_ends_with_the_same_bytes(
    small_config, tmp_path, committed_files, monkeypatch
):
    monkeypatch.setattr(backup, "BACKUPS_AT_ONCE", 8)
    monkeypatch.setattr(refinement, "PROPOSALS_AT_ONCE", 4)
    fields = on(LAKE, rollout={"games": 24}, evaluation=ALONE)
    whole = committed_files(run(small_config(tmp_path / "whole", **fields)).path)
    answer, left = GameRuleModel.generate, [0]

    def generate(self, requests):
        left[0] -= 1
        if left[0] == 0:
            raise Interrupted
        return answer(self, requests)

    monkeypatch.setattr(GameRuleModel, "generate", generate)
    config, parts = small_config(tmp_path / "run", **fields), set()
    for calls in range(13, 20):
        left[0] = calls
        with pytest.raises(Interrupted):
            run(config)
        parts |= {path.parents[1].name for path in Path(config.out).glob("iterations/*/*/shards/*.jsonl")}
    assert parts >= {"targets", "improvement"}
    left[0] = -1
    assert committed_files(run(config).path) == whole


@pytest.mark.slow
@pytest.mark.parametrize("moments", [[(2, "targets")], [(1, "average"), (1, "actor"), (2, "improvement")]])
def test_a_killed_run_ends_with_the_bytes_of_an_uninterrupted_one(small_config, tmp_path, committed_files, moments):
    fields = on(LAKE, rollout={"games": 24}, evaluation=ALONE)
    whole = run(small_config(tmp_path / "whole", **fields)).path
    (tmp_path / "config.toml").write_text(to_toml(small_config(tmp_path / "run", **fields)))
    command = [str(Path(sys.executable).with_name("nlrl")), "run", str(tmp_path / "config.toml")]
    for moment in moments:
        assert killed_in(command, tmp_path / "run", *moment)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
    assert committed_files(tmp_path / "run") == committed_files(whole)


@pytest.mark.parametrize("name", ["targets", "average", "improvement"])
def test_what_a_crash_took_away_is_made_again_with_the_same_bytes(small_config, tmp_path, committed_files, name):
    config = small_config(tmp_path / "run", **on(LAKE, rollout={"games": 12}, evaluation=ALONE))
    folder = run(config).path
    whole, names = committed_files(folder), [each for each, _ in nlac.METHOD.stages]
    for later in names[names.index(name) :]:
        shutil.rmtree(folder / "iterations/002" / later)
    shutil.rmtree(folder / "agent")
    run(config)
    assert committed_files(folder) == whole
    assert len(whole) > 16


@pytest.mark.slow
def test_a_run_wins_more(small_config, tmp_path):
    more = {"rollout": {"games": 100, "samples_per_state": 4, "samples_at_start": 16}, "iterations": 6}
    fields = NLAC | more | {"nlac": {"decay": 0, "rounds": 3}, "evaluation": {"games": 0, "opponents": ["random"]}}
    folder = RunFolder(run(small_config(tmp_path / "run", **fields)).path)
    found = [folder.stage(i, "evaluation").load()["metrics"] for i in (0, 6)]
    wins = [metrics["exact"]["against"]["random"]["win"] for metrics in found]
    errors = [metrics["texts"]["against_policy"]["text"]["mae"] for metrics in found]
    assert wins[1] > wins[0] + 0.05
    assert errors[1] < errors[0] - 0.05


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"rollout": {"opponents": ["random", "self"]}}, r"rollout\.opponents has 'self', which changes.*'recent'"),
        (
            {"rollout": {"opponents": ["checkpoint(last)"]}},
            r"rollout\.opponents has 'checkpoint\(last\)', which changes",
        ),
        ({"targets": {"kind": "td"}}, r"targets\.kind is 'td': method 'nlac' does not use it"),
        ({"targets": {"value": "v"}}, r"targets\.value is 'v'"),
        ({"targets": {"opponent_aware": True}}, r"targets\.opponent_aware is True"),
        ({"improvement": {"candidates": "sampled"}}, r"improvement\.candidates is 'sampled'"),
        ({"control": "shuffled_evaluations"}, r"control is 'shuffled_evaluations'.*no candidates"),
        ({"nlac": {"summaries": 3}}, r"nlac\.summaries is 3: bundled models merge at most 2"),
        ({"critic": {"replay": {"kind": "prioritised"}}}, r"critic\.replay\.kind is 'prioritised'"),
        ({"nlac": {"decay": 1.0}}, r"nlac\.decay"),
        ({"model": {"kind": "openai", "name": "x", "base_url": "http://127.0.0.1:1/v1"}}, r"model\.kind is 'openai'"),
    ],
)
def test_what_cannot_be_done_is_refused(small_config, tmp_path, changes, complaint):
    with pytest.raises(NLRLError, match=complaint):
        check(small_config(tmp_path / "run", **{"method": "nlac", **changes}))


def test_an_opponent_that_changes_may_be_met_where_nothing_old_is_learned_from(small_config, tmp_path):
    fields = {"method": "nlac", "rollout": {"opponents": ["self", "checkpoint(1)"]}}
    check(small_config(tmp_path / "run", **fields, nlac={"replay": {"kind": "recent"}}))


def test_chat_models_may_sum_up_more_and_the_actors_replay_may_be_prioritised(small_config, tmp_path):
    teacher = {"kind": "openai", "name": "x", "base_url": "http://127.0.0.1:1/v1"}
    actor = {"replay": {"kind": "prioritised"}}
    check(small_config(tmp_path / "run", method="nlac", nlac={"summaries": 8}, teacher=teacher, actor=actor))
