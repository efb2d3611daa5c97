"""What each stage asks, writes and learns, with a model that follows rules and tells what it was asked."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from dataclasses import replace

import pytest

from nlrl.agents.metrics.leaks import find_leaks
from nlrl.agents.roles import ActionInput, Evaluation, StateInput
from nlrl.backbones.language_model import Message, Request
from nlrl.envs import make
from nlrl.envs.opponents import TabularPolicy, make_opponent
from nlrl.envs.oracle import oracle_for
from nlrl.errors import NLRLError
from nlrl.orchestration.config import TrainConfig
from nlrl.orchestration.diary import probes
from nlrl.orchestration.stages.evaluation import greedy_replies, run_evaluation, shares
from nlrl.orchestration.stages.improvement import nearest_to_mean, run_improvement
from nlrl.orchestration.stages.policy_table import read_table, run_policy_table
from nlrl.orchestration.stages.rollout import run_rollout, visits
from nlrl.orchestration.stages.targets import plan_targets, run_targets
from nlrl.orchestration.stages.training import buffer, run_actor, run_critic, weight
from nlrl.orchestration.worker import PlayJob, game_tasks
from nlrl.testing.by_rules import RuleModel

GAME = make("tictactoe")
START = GAME.initial_states()[0]
MODEL = RuleModel()
G1, G1_OUTLOOKS, G2 = (
    "Judge the move from these games.",
    "Judge the move from these outlooks.",
    "Join the steps and what follows.",
)
POLICY, Q, IMPROVE = "Choose a move.", "Value the move.", "Compare the moves."


def records(session, stage, iteration=1):
    return list(session.folder.stage(iteration, stage).records())


def manifest(session, stage, iteration=1):
    return session.folder.stage(iteration, stage).load()["metrics"]


def prompts(watched, task):
    """All prompts of one kind, in the order in which they were asked."""
    found = [request.messages[-1].content for _, requests in watched.calls for request in requests]
    return [prompt for prompt in found if prompt.startswith(task)]


def kinds_by_call(watched):
    """What each call of the model was about."""
    return [{request.messages[-1].content.split("\n", 1)[0] for request in requests} for _, requests in watched.calls]


def q_prompt(session, state, action):
    """What the critic is asked about a move."""
    return session.student_roles.q.messages(ActionInput(state, action))[-1].content


def spoil(task, change):
    """A wrapper of models: answers to one kind of prompt go through `change(text, prompt)`."""

    class Spoiled:
        def __init__(self, inner):
            self._inner = inner

        def __getattr__(self, name):
            return getattr(self._inner, name)

        def generate(self, requests):
            said = self._inner.generate(requests)
            return [
                replace(c, text=change(c.text, r.messages[-1].content))
                if r.messages[-1].content.startswith(task)
                else c
                for r, c in zip(requests, said, strict=True)
            ]

    return Spoiled


# -- rollout -----------------------------------------------------------------------------------------------------------
def test_the_rollout_plays_the_games_it_was_asked_for_half_in_each_seat(session):
    one = session(rollout={"games": 20, "opponents": ["random", "minimax"]})
    run_rollout(one, 1)
    found = records(one, "rollout")
    assert len({record["key"] for record in found}) == len(found) == 20
    assert Counter(record["seat"] for record in found) == {0: 10, 1: 10}
    assert {record["opponent"] for record in found} == {"random", "minimax"}
    metrics = manifest(one, "rollout")
    assert metrics["games"] == sum(metrics["results"].values()) == 20
    assert metrics["turns"] == sum(len(record["turns"]) for record in found)


def test_a_committed_stage_is_never_done_again(session, watched):
    one = session(model=watched.config)
    for stage in (run_rollout, run_targets, run_policy_table, run_critic, run_improvement, run_actor):
        stage(one, 1)
    run_evaluation(one, 1)
    watched.calls.clear()
    watched.fits.clear()
    for stage in (run_rollout, run_targets, run_policy_table, run_critic, run_improvement, run_actor):
        stage(one, 1)
    run_evaluation(one, 1)
    assert watched.calls == watched.fits == []


def test_visits_are_the_policys_own_turns(session):
    one = session()
    run_rollout(one, 1)
    found = records(one, "rollout")
    visited = visits(GAME, found)
    expected = Counter()
    for record in found:
        state = START
        for action in record["actions"]:
            if GAME.current_player(state) == record["seat"]:
                expected[state, action] += 1
            state = GAME.apply(state, action).state
    assert {(s, a): n for s, visit in visited.items() for a, n in visit.actions.items()} == expected
    assert all(visit.count == sum(visit.actions.values()) for visit in visited.values())
    assert all(visit.ply == 9 - len(GAME.legal_actions(state)) for state, visit in visited.items())
    assert list(visited) == list(visits(GAME, found[::-1]))  # whoever writes first


# -- targets -----------------------------------------------------------------------------------------------------------
def planned(one, iteration=1):
    return plan_targets(one, iteration, visits(GAME, records(one, "rollout")))


def test_evidence_goes_where_games_go_within_bounds(session):
    one = session(rollout={"games": 64}, targets={"texts_min": 1, "texts_max": 3, "texts_per_visit": 1.0})
    run_rollout(one, 1)
    seen = visits(GAME, records(one, "rollout"))
    texts = set()
    for plan in planned(one):
        ends = GAME.is_terminal(GAME.apply(plan.state, plan.action).state)
        wanted = max(1, min(3, round(math.sqrt(seen[plan.state].count))))
        assert (len(plan.keys), plan.samples) == ((1, 1) if ends else (wanted, 4))
        texts.add(len(plan.keys))
    assert texts == {1, 2, 3}


def test_every_legal_move_of_a_visited_state_gets_targets_or_only_those_that_were_played(session):
    one = session()
    run_rollout(one, 1)
    seen = visits(GAME, records(one, "rollout"))
    assert {(p.state, p.action) for p in planned(one)} == {(s, a) for s in seen for a in GAME.legal_actions(s)}
    other = session(targets={"actions": "visited"})
    run_rollout(other, 1)
    assert {(p.state, p.action) for p in planned(other)} == {(s, a) for s, v in seen.items() for a in v.actions}


def test_targets_have_keys_of_their_own(session):
    one = session()
    run_rollout(one, 1)
    first, second = ([key for plan in planned(one, iteration) for key in plan.keys] for iteration in (1, 2))
    assert len(set(first)) == len(first)
    assert not set(first) & set(second)


def test_g1_merges_games_played_on_from_the_move(session, watched):
    one = session(model=watched.config)
    run_rollout(one, 1)
    run_targets(one, 1)
    found = records(one, "targets")
    assert {record["key"] for record in found} == {key for plan in planned(one) for key in plan.keys}
    for record in found:
        state = GAME.parse_text(record["state"])
        me = GAME.player_names[GAME.current_player(state)]
        opening = f"{me}{record['action'] + 1}"
        results = [game_after(state, sample) for sample in record["samples"]]
        assert all(sample.split(",")[0].split()[0] == opening for sample in record["samples"])
        assert record["verdict"] == pytest.approx(sum(results) / len(results), abs=0.005)
        assert record["evidence"] == "games"
        assert f"\n{me} plays {record['action'] + 1}\n" in "".join(prompts(watched, G1))
    assert {asked_samples(prompt) for prompt in prompts(watched, G1)} == {tuple(record["samples"]) for record in found}
    assert not prompts(watched, G2)


def game_after(state, sample):
    """Plays a retold game; its result for the player to move in `state`."""
    me, (moves, _, result) = GAME.current_player(state), sample.partition(", ")
    for word in moves.split():
        assert word[0] == GAME.player_names[GAME.current_player(state)]
        state = GAME.apply(state, int(word[1:]) - 1).state
    assert GAME.is_terminal(state)
    value = GAME.returns(state)[me]
    assert ("draw" in result) == (value == 0)
    return value


def asked_samples(prompt):
    return tuple(re.findall(r"^(?:game|outlook) \d: (.*)$", prompt, re.MULTILINE))


def test_forfeits_in_continuations_are_told_as_such_and_count_against_the_forfeiter(session, watched):
    watched.wrap = spoil(
        POLICY, lambda text, prompt: "I give up." if prompt.count(" O ") + prompt.count(" X ") > 3 else text
    )
    one = session(model=watched.config, rollout={"opponents": ["random", "self"]})
    run_rollout(one, 1)
    assert manifest(one, "rollout")["results"]["forfeit"]
    run_targets(one, 1)
    told = [(r, sample) for r in records(one, "targets") for sample in r["samples"] if "forfeits" in sample]
    assert told
    single = [(r, s) for r, s in told if len(set(r["samples"])) == 1]
    for record, sample in single:
        me = GAME.player_names[GAME.current_player(GAME.parse_text(record["state"]))]
        assert record["verdict"] == (-1 if f"{me} forfeits" in sample else 1)


def test_td_asks_g2_for_each_look_ahead_and_g1_for_their_merger_in_separate_calls(session, watched):
    one = session(model=watched.config, targets={"kind": "td", "lookahead": 2, "continuations": 3})
    run_rollout(one, 1)
    watched.calls.clear()
    run_targets(one, 1)
    calls = kinds_by_call(watched)
    assert all(len(kinds) == 1 for kinds in calls)
    order = [kinds.pop() for kinds in calls]
    assert order.index(G2) < order.index(G1_OUTLOOKS)
    assert not prompts(watched, G1)
    fused = set(g2_answers(one, watched))
    for record in records(one, "targets"):
        assert record["evidence"] == "outlooks"
        assert set(record["samples"]) <= fused
        assert_g2_was_given(record["fused"], record["samples"], prompts(watched, G2))
        verdicts = [float(re.findall(r"[+-]\d\.\d\d", sample)[-1]) for sample in record["samples"]]
        assert record["verdict"] == pytest.approx(sum(verdicts) / len(verdicts), abs=0.006)


def assert_g2_was_given(fused, samples, asked):
    """The record's inputs of G2 are those of its prompts, one for each sample."""
    assert len(fused) == len(samples)
    for given in fused:
        assert any(given["played"] in prompt and given["successor"] in prompt for prompt in asked)


def g2_answers(one, watched):
    """What the rule model says to each G2 prompt it was given, without the ending."""
    requests = [Request((Message("user", prompt),)) for prompt in prompts(watched, G2)]
    return [completion.text.rsplit("\n", 1)[0] for completion in MODEL.generate(requests)]


@pytest.mark.parametrize("lookahead", [1, 2])
def test_td_successors_are_the_critics_words_about_the_policys_next_move_or_the_end(session, watched, lookahead):
    one = session(model=watched.config, targets={"kind": "td", "lookahead": lookahead})
    run_rollout(one, 1)
    run_targets(one, 1)
    valued = set()
    for prompt in prompts(watched, Q):
        (mover,) = re.findall(r"^([OX]) plays \d$", prompt, re.MULTILINE)
        valued.add(mover)
    assert valued == {"O", "X"}
    for prompt in prompts(watched, G2):
        (mover,), (steps,), (then,) = (
            re.findall(pattern, prompt, re.MULTILINE)
            for pattern in (r"^([OX]) to move$", r"^steps: (.*)$", r"^then: (.*)$")
        )
        over = ", " in steps
        assert (then == "the game is over.") == over
        if not over:
            assert len(steps.split()) == 2  # the policy's move and the answer: it is its turn again
            assert f"I put {mover} at" in then


def test_a_merger_that_cannot_be_read_is_kept_counted_and_not_learned(session, watched):
    watched.wrap = spoil(G1, lambda text, prompt: "It is hard to say." if "\nX plays 5" in prompt else text)
    one = session(model=watched.config)
    for stage in (run_rollout, run_targets, run_critic):
        stage(one, 1)
    bad = [record for record in records(one, "targets") if record["verdict"] is None]
    assert bad
    assert all(record["failures"] == ["missing", "missing"] for record in bad)
    assert manifest(one, "targets")["failed"] == len(bad)
    (fit,) = watched.fits
    assert not any("\nX plays 5" in example.messages[-1].content for example in fit.examples if trained(example, Q))
    assert manifest(one, "critic")["texts"] == manifest(one, "targets")["texts"] - len(bad)


def trained(example, task):
    return example.messages[-1].content.startswith(task)


# -- the critic's lesson -----------------------------------------------------------------------------------------------
def test_the_critic_learns_each_target_without_the_evidence_it_will_not_have(session, watched):
    one = session(model=watched.config, critic={"replay_fraction": 0})
    for stage in (run_rollout, run_targets, run_critic):
        stage(one, 1)
    (fit,) = watched.fits
    found = records(one, "targets")
    assert fit.network == "critic"
    assert len(fit.examples) == len(found)
    assert any(find_leaks(record["text"]) for record in found)
    told = defaultdict(list)
    for record in found:
        state = GAME.parse_text(record["state"])
        told[q_prompt(one, state, record["action"])].append(f"final_evaluation: {record['verdict'] + 0.0:+.2f}")
    for example in fit.examples:
        assert not find_leaks(example.completion)
        assert not re.search(r"game \d|Of \d games|won \d", example.messages[-1].content + example.completion)
        assert "I put" in example.completion
        told[example.messages[-1].content].remove(example.completion.rsplit("\n", 1)[1])
    assert not any(told.values())
    metrics = manifest(one, "targets")
    assert metrics["leaked"] == sum(bool(find_leaks(record["text"])) for record in found)
    assert metrics["dropped"] == 0


def test_a_target_that_is_nothing_but_evidence_is_dropped_and_counted(session, watched):
    only_counts = "In 8 games X has 4 won, 0 drawn, 4 lost.\nfinal_evaluation: +0.00"
    watched.wrap = spoil(G1, lambda text, prompt: only_counts if "\nX plays 5" in prompt else text)
    one = session(model=watched.config, critic={"replay_fraction": 0})
    for stage in (run_rollout, run_targets, run_critic):
        stage(one, 1)
    dropped = sum(record["text"] == only_counts for record in records(one, "targets"))
    assert dropped
    assert manifest(one, "targets")["dropped"] == dropped
    assert len(watched.fits[0].examples) == manifest(one, "targets")["texts"] - dropped


@pytest.mark.parametrize(
    ("iteration", "short_until", "length", "expected"),
    [(1, 2, 4, [1]), (2, 2, 4, [2]), (3, 2, 4, [2, 3]), (6, 2, 4, [3, 4, 5, 6]), (2, 0, 4, [1, 2]), (5, 0, 1, [5])],
)
def test_the_buffer_is_the_newest_set_at_first_and_never_goes_back_behind_it(iteration, short_until, length, expected):
    config = TrainConfig(short_buffer_until=short_until, buffer_iterations=length)
    assert list(buffer(config, iteration)) == expected


def test_the_buffer_is_what_is_trained_on(session, watched):
    for until, sets in ((1, 2), (2, 1)):
        one = session(model=watched.config, critic={"short_buffer_until": until, "replay_fraction": 0})
        watched.fits.clear()
        for iteration in (1, 2):
            for stage in (run_rollout, run_targets, run_critic):
                stage(one, iteration)
        sizes = [manifest(one, "targets", iteration)["texts"] for iteration in (1, 2)]
        assert [len(fit.examples) for fit in watched.fits] == [sizes[0], sum(sizes[2 - sets :])]


def test_visits_weigh_examples_up_to_a_limit():
    flat, rooted = TrainConfig(), TrainConfig(visit_weight=0.5)
    assert [weight(flat, visits) for visits in (0, 1, 100)] == [1, 1, 1]
    assert [weight(rooted, visits) for visits in (0, 1, 9, 100)] == [1, 1, 3, 4]


def test_fitting_uses_the_settings_of_its_network_and_more_epochs_at_first(session, watched):
    critic = {"learning_rate": 0.25, "batch_size": 7, "epochs": 2, "first_epochs": 5, "visit_weight": 0.5}
    one = session(model=watched.config, critic=critic)
    for iteration in (1, 2):
        for stage in (run_rollout, run_targets, run_critic):
            stage(one, iteration)
    first, second = (fit.settings for fit in watched.fits)
    assert (first.learning_rate, first.batch_size, first.epochs, second.epochs) == (0.25, 7, 5, 2)
    assert first.seed != second.seed
    weights = {example.messages[-1].content: example.weight for example in watched.fits[0].examples}
    for record in records(one, "targets"):
        prompt = q_prompt(one, GAME.parse_text(record["state"]), record["action"])
        assert weights[prompt] == pytest.approx(min(4, record["visits"] ** 0.5))


def test_replayed_corpus_examples_keep_the_language_and_never_say_what_to_play(session, watched):
    one = session(model=watched.config, critic={"replay_fraction": 0.5})
    for stage in (run_rollout, run_targets, run_critic):
        stage(one, 1)
    (fit,) = watched.fits
    replayed = [example for example in fit.examples if not trained(example, Q)]
    texts = manifest(one, "targets")["texts"]
    assert len(replayed) == round(texts / 2) == manifest(one, "critic")["replayed"]
    tasks = {example.messages[-1].content.split("\n", 1)[0] for example in replayed}
    assert len(tasks) > 4
    assert not tasks & {POLICY, Q, "Value the position."}


def test_shuffled_g1_gives_every_answer_to_another_prompt(session, watched):
    fits = []
    for control in ("none", "shuffled_g1"):
        one = session(model=watched.config, control=control, critic={"replay_fraction": 0})
        for stage in (run_rollout, run_targets, run_critic):
            stage(one, 1)
        fits.append([(e.messages[-1].content, e.completion) for e in watched.fits[-1].examples])
    real, shuffled = fits
    for part in (0, 1):
        assert sorted(pair[part] for pair in real) == sorted(pair[part] for pair in shuffled)
    kept = sum(pair in set(real) for pair in shuffled)
    assert kept < 0.1 * len(real)


# -- improvement -------------------------------------------------------------------------------------------------------
def until_improvement(one, iteration=1):
    for stage in (run_rollout, run_targets, run_policy_table, run_critic, run_improvement):
        stage(one, iteration)


def test_i_chooses_a_best_evaluated_candidate_in_every_visited_state(session, watched):
    one = session(model=watched.config)
    until_improvement(one)
    found = records(one, "improvement")
    seen = visits(GAME, records(one, "rollout"))
    assert {GAME.parse_text(record["state"]) for record in found} == set(seen)
    said = {}
    for record in found:
        verdicts = {c["action"]: c["verdict"] for c in record["candidates"]}
        state = GAME.parse_text(record["state"])
        assert sorted(verdicts) == list(GAME.legal_actions(state))
        assert verdicts[record["action"]] == max(verdicts.values())
        assert record["visits"] == seen[state].count
        said |= {(record["state"], c["action"]): c["verdict"] for c in record["candidates"]}
    assert manifest(one, "improvement")["chose_best"] == 1
    targets = defaultdict(list)
    for record in records(one, "targets"):
        targets[record["state"], record["action"]].append(record["verdict"])
    for pair, verdicts in targets.items():  # the critic says what it was taught
        assert said[pair] == pytest.approx(sum(verdicts) / len(verdicts), abs=0.006)


def test_candidates_are_listed_in_an_order_that_tells_nothing(session):
    one = session()
    until_improvement(one)
    listed = [[c["action"] for c in r["candidates"]] for r in records(one, "improvement") if len(r["candidates"]) > 4]
    assert sum(actions == sorted(actions) for actions in listed) < 0.2 * len(listed)


def test_the_actor_learns_is_arguments(session, watched):
    one = session(model=watched.config, actor={"replay_fraction": 0})
    until_improvement(one)
    run_actor(one, 1)
    fit = watched.fits[-1]
    assert fit.network == "actor"
    arguments = {record["text"] for record in records(one, "improvement")}
    assert {example.completion for example in fit.examples} == arguments
    assert all(trained(example, POLICY) for example in fit.examples)
    chosen = {record["state"]: record["action"] for record in records(one, "improvement")}
    for state, reply in greedy_replies(one, 1).items():
        if GAME.to_text(state) in chosen:
            assert reply.output.action == chosen[GAME.to_text(state)]


def test_the_actor_learns_no_evidence_that_it_will_not_have(session, watched):
    watched.wrap = spoil(IMPROVE, lambda text, prompt: f"The rollouts given favour it. {text}")
    one = session(model=watched.config, actor={"replay_fraction": 0})
    until_improvement(one)
    run_actor(one, 1)
    assert not any("rollouts" in example.completion for example in watched.fits[-1].examples)
    assert len(watched.fits[-1].examples) == manifest(one, "improvement")["leaked"] == len(records(one, "improvement"))


def test_shuffled_evaluations_give_every_move_another_moves_words(session, watched):
    plain, control = (session(model=watched.config, control=control) for control in ("none", "shuffled_evaluations"))
    for one in (plain, control):
        until_improvement(one)
    moved = total = 0
    by_state = {record["state"]: record for record in records(control, "improvement")}
    for real in records(plain, "improvement"):
        shuffled = by_state[real["state"]]
        texts = [{c["action"]: c["text"] for c in record["candidates"]} for record in (real, shuffled)]
        assert texts[0].keys() == texts[1].keys()
        assert sorted(texts[0].values()) == sorted(texts[1].values())
        moved += sum(texts[0][action] != texts[1][action] for action in texts[0])
        total += len(texts[0])
    assert moved > 0.5 * total


def test_a_move_whose_evaluation_cannot_be_read_is_no_candidate_and_is_counted(session, watched):
    mute = {"X plays 5": "I am not sure.", "O plays 1": "final_evaluation: 7"}
    watched.wrap = spoil(Q, lambda text, prompt: next((said for move, said in mute.items() if move in prompt), text))
    one = session(model=watched.config)
    until_improvement(one)
    unread = 0
    for record in records(one, "improvement"):
        state, given = GAME.parse_text(record["state"]), {c["action"] for c in record["candidates"]}
        missing = set(GAME.legal_actions(state)) - given
        assert missing <= ({4} if GAME.current_player(state) else {0})
        unread += len(missing)
        assert record["action"] in given or not given
    assert manifest(one, "improvement")["unread"] == unread > 0


def test_a_state_in_which_nothing_can_be_read_teaches_nothing_and_is_counted(session, watched):
    watched.wrap = spoil(Q, lambda text, prompt: "I am not sure." if "\nO plays" in prompt else text)
    one = session(model=watched.config)
    until_improvement(one)
    run_actor(one, 1)
    found = records(one, "improvement")
    silent = [record for record in found if record["candidates"] == []]
    assert {GAME.current_player(GAME.parse_text(record["state"])) for record in silent} == {0}
    assert len(found) == len(visits(GAME, records(one, "rollout")))
    assert manifest(one, "improvement")["failed"] == len(silent) > 0
    assert {e.messages[-1].content.splitlines()[-1][0] for e in watched.fits[-1].examples if trained(e, POLICY)} == {
        "X"
    }


def test_the_mask_offers_the_policys_own_most_frequent_moves(session, watched):
    mask = {"candidates": "sampled", "mask_samples": 12, "mask_keep": 2}
    one = session(model=watched.config, improvement=mask)
    until_improvement(one)
    played = defaultdict(list)
    for _, requests in watched.calls:
        for request, completion in zip(requests, answers(requests), strict=True):
            if request.messages[-1].content.startswith(POLICY) and request.sampling.temperature > 0:
                played[request.messages[-1].content].append(int(completion.text[-1]) - 1)
    for record in records(one, "improvement"):
        state = GAME.parse_text(record["state"])
        counts = Counter(played[one.student_roles.policy.messages(StateInput(state))[-1].content])
        given = [c["action"] for c in record["candidates"]]
        assert sum(counts.values()) == 12
        assert len(given) == min(2, len(counts))
        assert min(counts[a] for a in given) >= max((counts[a] for a in counts if a not in given), default=0)
        assert record["action"] in given


def answers(requests):
    return MODEL.generate(requests)


def q_requests(watched):
    return [r for _, requests in watched.calls for r in requests if r.messages[-1].content.startswith(Q)]


def test_a_greedy_critic_is_asked_once_and_greedily(session, watched):
    one = session(model=watched.config, improvement={"verdict": "greedy"})
    until_improvement(one)
    asked = q_requests(watched)
    assert {(r.sampling.temperature, r.sampling.expected_number) for r in asked} == {(0.0, False)}
    assert max(Counter(r.messages for r in asked).values()) == 1


def test_a_model_that_reads_expectations_is_asked_for_them(session, watched):
    def reading(model):
        model.reads_expectations = True
        return model

    watched.wrap = reading
    one = session(model=watched.config, improvement={"verdict": "expectation"})
    until_improvement(one)
    assert {(r.sampling.temperature, r.sampling.expected_number) for r in q_requests(watched)} == {(0.0, True)}


@pytest.mark.parametrize("verdict", ["expectation", "mean"])
def test_where_expectations_cannot_be_read_several_opinions_are_averaged(session, watched, verdict):
    one = session(
        model=watched.config, improvement={"verdict": verdict, "mean_samples": 5}, targets={"actions": "visited"}
    )
    until_improvement(one)
    asked = q_requests(watched)
    assert {r.sampling.temperature for r in asked} == {1.0}
    per_prompt = Counter(r.messages[-1].content for r in asked)
    assert set(per_prompt.values()) == {5}
    taught = {example.messages[-1].content for example in watched.fits[0].examples}
    noise = defaultdict(list)
    for request, completion in zip(asked, answers(asked), strict=True):
        noise[request.messages[-1].content].append(float(completion.text[-5:]))
    checked = 0
    for record in records(one, "improvement"):
        state = GAME.parse_text(record["state"])
        for c in record["candidates"]:
            prompt = q_prompt(one, state, c["action"])
            if prompt not in taught:
                mean = sum(noise[prompt]) / 5
                assert abs(c["verdict"] - mean) == pytest.approx(min(abs(v - mean) for v in noise[prompt]))
                checked += 1
    assert checked > 10


def test_the_opinion_nearest_to_the_mean_speaks_for_all():
    said = [Evaluation(str(v), v) for v in (-1.0, 0.25, 1.0)]
    assert nearest_to_mean(said) == said[1]
    assert nearest_to_mean([]) is None


# -- the policy as numbers ---------------------------------------------------------------------------------------------
def test_the_policy_table_holds_the_pools_moves_for_whatever_can_follow(session):
    one = session()
    run_rollout(one, 1)
    run_policy_table(one, 1)
    table = read_table(one, 1)
    assert table
    for state, moves in table.items():
        ply = 9 - len(GAME.legal_actions(state))
        assert sum(moves.values()) == max(2, 4 >> (2 * ply))
        assert set(moves) <= {*GAME.legal_actions(state), None}
    frontier = [GAME.apply(p.state, a).state for p in probes(one) for a in GAME.legal_actions(p.state)]
    for state in frontier:  # whatever the opponent answers, the policy's next moves are known
        if not GAME.is_terminal(state):
            for reply in GAME.legal_actions(state):
                after = GAME.apply(state, reply).state
                assert GAME.is_terminal(after) or after in table


# -- evaluation --------------------------------------------------------------------------------------------------------
def test_exact_strength_is_the_oracles_for_the_greedy_moves(session):
    one = session()
    metrics = run_evaluation(one, 0)
    greedy = {state: reply.output.action for state, reply in greedy_replies(one, 0).items()}
    oracle = oracle_for(GAME)
    everywhere = {
        state: {greedy.get(state, GAME.legal_actions(state)[0]): 1.0}
        for state in oracle.table.states
        if not GAME.is_terminal(state)
    }
    policy = TabularPolicy(everywhere, "greedy")
    for name, found in metrics["exact"]["against"].items():
        expected = oracle.mixed_outcome(policy, make_opponent(name, GAME))
        assert (found["win"], found["draw"], found["loss"]) == pytest.approx(expected, abs=1e-6)
        assert found["forfeit"] == 0
    assert metrics["exact"]["exploitability"] == pytest.approx(oracle.exploitability(policy), abs=1e-6)
    assert metrics["exact"]["states"] == metrics["turns"]["states"] == len(greedy)


def test_evaluation_plays_pairs_of_seats_on_shared_seeds_greedily_and_sampled(session):
    one = session(evaluation={"games": 6, "opponents": ["random", "minimax"]})
    metrics = run_evaluation(one, 0)
    games = [record for record in records(one, "evaluation", 0) if record["kind"] == "game"]
    assert len(games) == 6 * 2 * 2
    assert Counter((record["opponent"], record["seat"]) for record in games) == {
        (name, seat): 6 for name in ("random", "minimax") for seat in (0, 1)
    }
    for label in ("greedy", "sampled"):
        for row in metrics["sampled"][label].values():
            assert row["games"] == 6
            assert sum(row[result]["share"] for result in ("win", "draw", "loss", "forfeit")) == pytest.approx(1)
            assert all(row[r]["low"] <= row[r]["share"] <= row[r]["high"] for r in ("win", "draw", "loss", "forfeit"))


def test_a_pair_of_evaluation_games_shares_its_seed(session):
    one = session(evaluation={"games": 6, "opponents": ["random"]})
    run_evaluation(one, 0)
    played = {record["key"]: record["actions"] for record in records(one, "evaluation", 0) if record["kind"] == "game"}
    for label, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        tasks = game_tasks("small", 0, 0, f"evaluation/{label}/random", 6, ["random"], paired=True)
        for record in one.workers[0].call("play", PlayJob("base", temperature, tasks)).result():
            assert played[record["key"]] == record["actions"]


def test_no_sampled_games_are_played_when_none_are_wanted(session):
    one = session(evaluation={"games": 0})
    assert run_evaluation(one, 0)["sampled"] == {}
    assert not [record for record in records(one, "evaluation", 0) if record["kind"] == "game"]


def test_forfeits_are_an_outcome_and_unreadable_turns_are_counted(session, watched):
    watched.wrap = spoil(POLICY, lambda text, prompt: "No idea." if "X to move" in prompt else text)
    metrics = run_evaluation(session(model=watched.config), 0)
    exact = metrics["exact"]["against"]["minimax"]
    assert exact["forfeit"] == pytest.approx(0.5)  # every game as X
    greedy = metrics["sampled"]["greedy"]["minimax"]
    assert greedy["forfeit"]["share"] == 0.5
    assert greedy["failures_per_turn"] > 0
    turns = metrics["turns"]
    assert 0 < turns["forfeits"] == turns["failed_first"] < 1
    assert turns["failures"] == {"missing": 2 * round(turns["forfeits"] * turns["states"])}


def test_shares_of_nothing_but_wins():
    found = shares([{"result": "win", "turns": [{"failures": ["empty"]}, {"failures": []}]}] * 10)
    assert (found["win"]["share"], found["loss"]["share"], found["failures_per_turn"]) == (1, 0, 0.5)
    assert found["win"]["low"] > 0.7


def test_texts_are_scored_against_exact_values_beside_trivial_baselines(session):
    one = session(evaluation={"value_states": 0}, rollout={"games": 24}, targets={"continuations": 9})
    run_evaluation(one, 0)
    until_improvement(one)
    run_actor(one, 1)
    before, after = manifest(one, "evaluation", 0)["texts"], run_evaluation(one, 1)["texts"]
    assert after["pairs"] == manifest(one, "improvement")["evaluations"]
    assert {"text", "constant", "one_step"} <= after["against_policy"].keys()
    assert after["against_policy"]["text"]["mae"] < 0.75 * before["against_policy"]["text"]["mae"]
    assert after["against_policy"]["text"]["sign_accuracy"] > before["against_policy"]["text"]["sign_accuracy"]
    assert before["true_claims"] == after["true_claims"] == 1
    assert after["leaks"] == 0


def test_a_text_that_cannot_be_read_counts_against_coverage(session, watched):
    watched.wrap = spoil(Q, lambda text, prompt: "I am not sure." if prompt.endswith(" 5") else text)
    one = session(model=watched.config, evaluation={"value_states": 0})
    first = run_evaluation(one, 0)["texts"]
    until_improvement(one)
    run_actor(one, 1)
    second = run_evaluation(one, 1)["texts"]
    for texts in (first, second):
        assert 0.7 < texts["against_policy"]["text"]["coverage"] < 0.97


# -- the diary ---------------------------------------------------------------------------------------------------------
def test_the_diary_asks_about_every_move_of_every_probe_beside_exact_values(session):
    one = session(evaluation={"probes": ["", "1 5 9"]})
    run_evaluation(one, 0)
    until_improvement(one)
    run_actor(one, 1)
    run_evaluation(one, 1)
    oracle = oracle_for(GAME)
    for iteration in (0, 1):
        entries = [record for record in records(one, "evaluation", iteration) if record["kind"] == "diary"]
        assert [entry["moves"] for entry in sorted(entries, key=lambda e: e["ply"])] == ["", "1 5 9"]
        for entry in entries:
            state = GAME.parse_text(entry["state"])
            assert [e["action"] for e in entry["evaluations"]] == list(GAME.legal_actions(state))
            assert {e["action"]: e["exact_optimal"] for e in entry["evaluations"]} == oracle.q_values(state)
            assert all((e["exact_policy"] is None) == (iteration == 0) for e in entry["evaluations"])
            assert entry["argument"].endswith(f"best_move: {entry['action'] + 1}")
    text = (one.folder.path / "evaluations.md").read_text()
    assert text.count("### Iteration 0") == text.count("### Iteration 1") == 2
    assert text.count("## The start") == text.count("## After 1 5 9") == 1


@pytest.mark.parametrize(
    ("line", "complaint"), [("1 1", "'1' in '1 1' is not a legal move"), ("1 4 2 5 3", "ends the game")]
)
def test_a_probe_that_cannot_be_played_is_refused_by_its_moves(session, line, complaint):
    with pytest.raises(NLRLError, match=rf"evaluation.probes: .*{complaint}"):
        probes(session(evaluation={"probes": ["1 5", line]}))
