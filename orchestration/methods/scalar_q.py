"""A scalar critic in place of the language critic: the same games, the same backbone, a number in place of a text.

Rollout, returns, critic, improvement, actor, evaluation. The value head learns the mean return of games played on from
each (state, action); the actor is fine-tuned on the move with the highest value, in the words of a guess, since a
number has no argument. The evaluation has the actor's strength and, as `argmax`, that of the critic's choice itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from nlrl.agents.roles import ActionInput
from nlrl.backbones.language_model import Message
from nlrl.envs.random import derive_seed
from nlrl.orchestration.budget import Entry
from nlrl.orchestration.exact import Turn
from nlrl.orchestration.fits import ReturnExample, ValueFit
from nlrl.orchestration.lines import replay
from nlrl.orchestration.methods import Method
from nlrl.orchestration.progress import progress
from nlrl.orchestration.records import record_key
from nlrl.orchestration.session import ACTOR, CRITIC, Session
from nlrl.orchestration.stages import improvement, rollout
from nlrl.orchestration.stages.decisions import outcome_of
from nlrl.orchestration.stages.evaluation import NAME as EVALUATION
from nlrl.orchestration.stages.evaluation import games_said, greedy_replies, sampled_strength
from nlrl.orchestration.stages.rollout import chunks, run_rollout, visits
from nlrl.orchestration.stages.strength import chosen, run_strength, silent, strength
from nlrl.orchestration.stages.targets import PAIRS_AT_ONCE, Plan, plan_targets
from nlrl.orchestration.stages.training import buffer, check_native, checked, restored, run_actor, train
from nlrl.orchestration.worker import ContinuationTask, ContinueJob

RETURNS = "returns"


def run_returns(session: Session, iteration: int) -> None:
    """Plays on from every (state, action) that the language critic would get texts about, and commits mean returns."""
    stage = session.folder.stage(iteration, RETURNS)
    if stage.is_committed():
        return
    games = session.folder.stage(iteration, rollout.NAME).records()
    plans = plan_targets(session, iteration, visits(session.game, games))
    owed = set(stage.owed([_key(session, iteration, plan) for plan in plans]))
    waiting = [plan for plan in plans if _key(session, iteration, plan) in owed]
    size = min(PAIRS_AT_ONCE, -(-len(waiting) // len(session.workers)) or 1)
    groups = list(chunks(waiting, size))
    with stage.writer(RETURNS) as writer, progress(f"iteration {iteration}: returns", len(plans)) as bar:
        bar.advance(len(plans) - len(waiting))
        for index, samples in session.on_workers("continue_games", [_job(session, group) for group in groups]):
            found = zip(groups[index], samples, strict=True)
            writer.write_many(_record(session, iteration, plan, games) for plan, games in found)
            writer.flush()
            bar.advance(len(samples))
    count = sum(1 for _ in stage.records())
    stage.commit({"pairs": count} | session.told())


def _key(session: Session, iteration: int, plan: Plan) -> str:
    state = session.game.to_text(plan.state)
    return record_key("return", session.config.name, session.config.seed, iteration, state, plan.action)


def _job(session: Session, plans: Sequence[Plan]) -> ContinueJob:
    rollouts = session.config.rollout
    tasks = [ContinuationTask(p.state, p.ply, p.action, p.samples * len(p.keys), p.seed) for p in plans]
    return ContinueJob(session.versions[ACTOR], rollouts.temperature, session.opponents, tasks)


def _record(session: Session, iteration: int, plan: Plan, games: Sequence[Any]) -> dict[str, Any]:
    game, language = session.game, session.student_roles.policy.language
    player = game.current_player(plan.state)
    lines = [replay(game, plan.state, one.actions, one.outcomes) for one in games]
    outcomes = [outcome_of(game, language, line, one.result, player) for line, one in zip(lines, games, strict=True)]
    return {
        "schema": 1,
        "kind": "return",
        "key": _key(session, iteration, plan),
        "iteration": iteration,
        "state": game.to_text(plan.state),
        "ply": plan.ply,
        "action": plan.action,
        "visits": plan.visits,
        "policy": session.versions[ACTOR],
        "games": len(outcomes),
        "mean": round(sum(outcomes) / len(outcomes), 6),
    }


def run_critic(session: Session, iteration: int) -> None:
    """Regresses the critic's value head, and the network under it, on the newest sets of returns."""
    if restored(session, iteration, CRITIC):
        return
    config, role = session.config.critic, session.student_roles.q

    def examples() -> Iterator[ReturnExample]:
        for each in buffer(config, iteration):
            for record in session.folder.stage(each, RETURNS).records():
                inp = ActionInput(session.game.parse_text(record["state"]), record["action"])
                yield ReturnExample(role.messages(inp), record["mean"], float(record["games"]))

    found = checked(session, iteration, CRITIC, list(examples()))
    epochs = config.first_epochs if iteration == 1 else config.epochs
    kept = {"keep_optimizer": config.keep_optimizer, "save_every": config.save_every}
    seed = session.seed("fit", CRITIC, iteration)
    settings = ValueFit(config.learning_rate, config.batch_size, epochs, seed, **kept)
    train(session, iteration, CRITIC, found, settings, {"returns": len(found)}, head=True)


def run_improvement(session: Session, iteration: int) -> None:
    """Chooses the move with the highest value in every visited state and commits the choices."""
    stage = session.folder.stage(iteration, improvement.NAME)
    if stage.is_committed():
        return
    visited = visits(session.game, session.folder.stage(iteration, rollout.NAME).records())
    values = action_values(session, iteration, improvement.NAME, list(visited))
    with stage.writer("choices") as writer:
        for state, visit in visited.items():
            best = max(values[state], key=values[state].__getitem__)
            text = session.game.to_text(state)
            writer.write(
                {
                    "schema": 1,
                    "kind": "improvement",
                    "key": record_key("improvement", session.config.name, session.config.seed, iteration, text),
                    "iteration": iteration,
                    "state": text,
                    "ply": visit.ply,
                    "visits": visit.count,
                    "critic": session.versions[CRITIC],
                    "values": {str(action): round(value, 6) for action, value in values[state].items()},
                    "action": best,
                    "target": spoken(session, state, best),
                }
            )
    stage.commit({"states": len(visited)})


def action_values(session: Session, iteration: int, purpose: str, states: Sequence[Any]) -> dict[Any, dict[int, float]]:
    """What the critic's head says of every legal move of each state."""
    assert session.trainer is not None
    pairs = [(state, action) for state in states for action in session.game.legal_actions(state)]
    prompts: list[tuple[Message, ...]] = [session.student_roles.q.messages(ActionInput(*pair)) for pair in pairs]
    values, tokens = session.trainer.call("values", CRITIC, prompts).result()
    texts = sorted(map(session.game.to_text, states))
    session.meter.note([Entry(derive_seed(purpose, iteration, *texts), prompt_tokens=tokens)])
    found: dict[Any, dict[int, float]] = {state: {} for state in states}
    for (state, action), value in zip(pairs, values, strict=True):
        found[state][action] = value
    return found


def spoken(session: Session, state: Any, action: int) -> str:
    """A move as the actor says it before it knows why: facts of the position, a guess, the move."""
    language, text = session.student_roles.policy.language, session.game.action_text(state, action)
    if session.config.model.prompt_style != "plain":
        return f"best_move: {text}"
    guess = language.phrases["argument"]["guess"][0].format(move=text)
    return f"{' '.join(filter(None, (language.facts(state), guess)))}\nbest_move: {text}"


def run_evaluation(session: Session, iteration: int) -> dict[str, Any]:
    """The actor's strength, and that of the move with the highest value."""
    stage = session.folder.stage(iteration, EVALUATION)
    if stage.is_committed():
        return stage.load()["metrics"]

    def choose(turns: list[Turn]) -> list[Any]:
        values = action_values(session, iteration, EVALUATION, [turn.state for turn in turns])
        return [silent(max(values[turn.state], key=values[turn.state].__getitem__)) for turn in turns]

    metrics = strength(session, greedy_replies(session, iteration))
    metrics["argmax"] = strength(session, chosen(session, choose))["exact"]
    metrics["sampled"] = sampled_strength(session, stage, iteration)
    return stage.commit(metrics | games_said(session, stage))["metrics"]


METHOD = Method(
    stages=(
        ("rollout", run_rollout),
        (RETURNS, run_returns),
        ("critic", run_critic),
        ("improvement", run_improvement),
        ("actor", run_actor),
        ("evaluation", run_evaluation),
    ),
    first=(("evaluation", run_strength),),
    check=check_native,
    gathers=2,
)
