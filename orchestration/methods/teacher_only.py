"""The teacher alone: G1 and I decide each move at play, from games of the untrained actor. Nothing is trained.

Decisions, evaluation. What the student would have to learn is asked afresh in every position that the agent can meet:
games are played on from every legal move, G1 judges them, I chooses. A further iteration adds as much evidence again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nlrl.agents.asking import Reply, ask
from nlrl.agents.parser import ParseFailure
from nlrl.agents.roles import CandidatesInput, Choice, Evaluation, SamplesInput
from nlrl.backbones.language_model import Completion
from nlrl.envs.random import Rng
from nlrl.orchestration.exact import Turn
from nlrl.orchestration.lines import replay
from nlrl.orchestration.methods import Method
from nlrl.orchestration.records import record_key
from nlrl.orchestration.session import ACTOR, Session
from nlrl.orchestration.stages.decisions import is_forfeited
from nlrl.orchestration.stages.improvement import nearest_to_mean
from nlrl.orchestration.stages.rollout import chunks
from nlrl.orchestration.stages.strength import chosen, run_chosen_strength, run_strength
from nlrl.orchestration.worker import Continuation, ContinuationTask, ContinueJob

NAME = "decisions"
Pair = tuple[Any, int]


def run_decisions(session: Session, iteration: int) -> None:
    """Decides in every state that the agent can meet, and commits the decisions."""
    stage = session.folder.stage(iteration, NAME)
    if stage.is_committed():
        return
    known = {session.game.parse_text(record["state"]): record for record in stage.records()}
    with stage.writer(NAME) as writer:

        def choose(turns: list[Turn]) -> list[Reply[Choice]]:
            new = [turn for turn in turns if turn.state not in known]
            for record in decided(session, iteration, new):
                writer.write(record)
                known[session.game.parse_text(record["state"])] = record
            writer.flush()
            return [reply_of(known[turn.state]) for turn in turns]

        met = chosen(session, choose)
    stage.commit({"states": len(met), "forfeits": sum(reply.failed for reply in met.values())})


def decided(session: Session, iteration: int, turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """A record of what I chose, and on what grounds, for each turn."""
    if not turns:
        return []
    game, seed = session.game, session.seed
    pairs = [(turn, action) for turn in turns for action in game.legal_actions(turn.state)]
    new, before = judged(session, iteration, pairs), earlier(session, iteration)
    offers = []
    for turn in turns:
        texts = {a: before.get((turn.state, a), []) + new[turn.state, a] for a in game.legal_actions(turn.state)}
        read = [(action, found) for action, said in texts.items() if (found := nearest_to_mean(said))]
        order = Rng(seed("candidates", iteration, game.to_text(turn.state)))
        offers.append(CandidatesInput(turn.state, tuple(order.shuffled(read))))
    asked = [offer for offer in offers if offer.candidates]
    replies = ask(session.teacher, session.teacher_roles.improvement, asked, session.teacher_sampling)
    answers = {offer.state: reply for offer, reply in zip(asked, replies, strict=True)}
    found = zip(turns, offers, strict=True)
    return [_record(session, iteration, turn, offer, answers.get(turn.state), new) for turn, offer in found]


def earlier(session: Session, iteration: int) -> dict[Pair, list[Evaluation]]:
    """G1's evaluations of earlier iterations."""
    found: dict[Pair, list[Evaluation]] = {}
    for each in range(1, iteration):
        for record in session.folder.stage(each, NAME).records():
            state = session.game.parse_text(record["state"])
            for action, said in record["said"].items():
                found.setdefault((state, int(action)), []).extend(Evaluation(**evaluation) for evaluation in said)
    return found


def judged(session: Session, iteration: int, turns: Sequence[tuple[Turn, int]]) -> dict[Pair, list[Evaluation]]:
    """G1's readable evaluations of each (state, action): `texts_max` of them, each from games of its own."""
    config, roles, game = session.config, session.teacher_roles, session.game
    inputs, seeds = [], []
    for (turn, action), games in zip(turns, played_on(session, iteration, turns), strict=True):
        told = [_told(session, turn, one) for one in games]
        for part in chunks(told, config.targets.continuations):
            inputs.append(SamplesInput(turn.state, action, tuple(part)))
            seeds.append(session.seed("g1", iteration, game.to_text(turn.state), action, len(part)))
    replies = ask(session.teacher, roles.g1, inputs, session.teacher_sampling, seeds)
    found: dict[Pair, list[Evaluation]] = {(turn.state, action): [] for turn, action in turns}
    for inp, reply in zip(inputs, replies, strict=True):
        if reply.output:
            found[inp.state, inp.action].append(reply.output)
    return found


def played_on(session: Session, iteration: int, turns: Sequence[tuple[Turn, int]]) -> list[list[Continuation]]:
    """Games of the actor from each (state, action); a single one where the move ends the game."""
    rollouts, targets, game = session.config.rollout, session.config.targets, session.game
    tasks = []
    for turn, action in turns:
        ends = all(game.is_terminal(step.state) for step in game.transitions(turn.state, action))
        count = 1 if ends else targets.continuations * targets.texts_max
        seed = session.seed("teacher", iteration, game.to_text(turn.state), action)
        tasks.append(ContinuationTask(turn.state, turn.ply, action, count, seed))
    version = session.versions[ACTOR]
    jobs = [
        ContinueJob(version, rollouts.temperature, rollouts.opponents, part)
        for part in chunks(tasks, -(-len(tasks) // len(session.workers)))
    ]
    parts = dict(session.on_workers("continue_games", jobs))
    return [games for index in range(len(jobs)) for games in parts[index]]


def _told(session: Session, turn: Turn, one: Continuation) -> str:
    line = replay(session.game, turn.state, one.actions, one.outcomes)
    return session.teacher_roles.g1.language.told(line, is_forfeited(session.game, line, one.result))


def _record(
    session: Session,
    iteration: int,
    turn: Turn,
    offer: CandidatesInput,
    reply: Reply[Choice] | None,
    said: Mapping[Pair, Sequence[Evaluation]],
) -> dict[str, Any]:
    text, legal = session.game.to_text(turn.state), session.game.legal_actions(turn.state)
    return {
        "schema": 1,
        "kind": "decision",
        "key": record_key("decision", session.config.name, session.config.seed, iteration, text),
        "iteration": iteration,
        "state": text,
        "ply": turn.ply,
        "said": {str(a): [{"text": e.text, "verdict": e.verdict} for e in said[turn.state, a]] for a in legal},
        "candidates": [{"action": a, "text": e.text, "verdict": e.verdict} for a, e in offer.candidates],
        "action": reply.output.action if reply and reply.output else None,
        "text": reply.completion.text if reply else "",
        "failures": [failure.reason for failure in reply.failures] if reply else [],
    }


def reply_of(record: Mapping[str, Any]) -> Reply[Choice]:
    """The answer that a record keeps."""
    choice = None if record["action"] is None else Choice(record["action"], record["text"])
    failures = tuple(ParseFailure(reason, "") for reason in record["failures"])
    return Reply(choice, Completion(record["text"]), failures)


def run_evaluation(session: Session, iteration: int) -> dict[str, Any]:
    """Exact results of the decisions."""
    records = session.folder.stage(iteration, NAME).records()
    known = {session.game.parse_text(record["state"]): record for record in records}
    return run_chosen_strength(session, iteration, lambda turns: [reply_of(known[turn.state]) for turn in turns])


METHOD = Method(
    stages=((NAME, run_decisions), ("evaluation", run_evaluation)),
    first=(("evaluation", run_strength),),
    exports=None,
)
