"""The policy as numbers: its sampled moves in every state it can meet from the evaluated moves on, so that its
exact value is known. Of a game too large for that the table is empty.

Measured while the policy still holds the server; nearly all of it was asked during the rollout and is answered from
memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from nlrl.orchestration.diary import probes
from nlrl.orchestration.exact import Turn, reachable_turns, successors
from nlrl.orchestration.players import SELF
from nlrl.orchestration.progress import progress
from nlrl.orchestration.records import record_key
from nlrl.orchestration.session import ACTOR, Session
from nlrl.orchestration.stages import rollout
from nlrl.orchestration.stages.rollout import chunks, visits
from nlrl.orchestration.worker import TableJob

NAME = "policy"
Moves = Counter[int | None]


def run_policy_table(session: Session, iteration: int) -> None:
    """Tabulates the policy that played the iteration's games, for the value states of the evaluation, and commits
    the table."""
    stage = session.folder.stage(iteration, NAME)
    if stage.is_committed():
        return
    visited = visits(session.game, session.folder.stage(iteration, rollout.NAME).records())
    chosen = value_states(session, iteration, list(visited))
    if not session.is_small:  # exact values of a policy need all that can follow
        stage.commit({"states": 0, "value_states": len(chosen)} | session.told())
        return
    table: dict[Any, Moves] = {}
    with progress(f"iteration {iteration}: policy table", 0) as bar:

        def choose(turns: list[Turn]) -> list[Iterable[int | None]]:
            new = [turn for turn in turns if turn.state not in table]
            table.update(zip((turn.state for turn in new), tabulate(session, new), strict=True))
            bar.advance(len(new))
            return [list(table[turn.state]) for turn in turns]

        plies = {state: visited[state].ply for state in chosen} | {p.state: p.ply for p in probes(session)}
        both_seats = SELF in session.opponents
        reachable_turns(session.game, choose, _starts(session, plies), both_seats)
    with stage.writer("table") as writer:
        writer.write_many(_record(session, iteration, state, moves) for state, moves in table.items())
    stage.commit({"states": len(table), "value_states": len(chosen)} | session.told())


def _starts(session: Session, plies: dict[Any, int]) -> list[Turn]:
    """The positions after every legal move of the given states."""
    game = session.game
    return [
        Turn(after, game.current_player(state), ply + 1)
        for state, ply in plies.items()
        for action in game.legal_actions(state)
        for after in successors(game, state, action)
    ]


def tabulate(session: Session, turns: list[Turn]) -> list[Moves]:
    """Sampled moves on each turn, spread over the workers."""
    if not turns:
        return []
    version, temperature = session.versions[ACTOR], session.config.rollout.temperature
    jobs = [
        TableJob(version, temperature, [turn.state for turn in part], [turn.ply for turn in part])
        for part in chunks(turns, -(-len(turns) // len(session.workers)))
    ]
    parts = dict(session.on_workers("policy_table", jobs))
    return [moves for index in range(len(jobs)) for moves in parts[index]]


def value_states(session: Session, iteration: int, visited: list[Any]) -> list[Any]:
    """The visited states whose evaluations are compared with exact values: a seeded sample, or all."""
    from nlrl.envs.random import Rng

    count = session.config.evaluation.value_states
    if count == 0 or count >= len(visited):
        return visited
    return Rng(session.seed("value states", iteration)).shuffled(visited)[:count]


def read_table(session: Session, iteration: int) -> dict[Any, Moves]:
    """The committed table of an iteration."""
    table = {}
    for record in session.folder.stage(iteration, NAME).records():
        counts = {None if move == "forfeit" else int(move): n for move, n in record["moves"].items()}
        table[session.game.parse_text(record["state"])] = Counter(counts)
    return table


def _record(session: Session, iteration: int, state: Any, moves: Moves) -> dict[str, Any]:
    text = session.game.to_text(state)
    return {
        "schema": 1,
        "kind": "policy",
        "key": record_key("policy", session.config.name, session.config.seed, iteration, text),
        "iteration": iteration,
        "state": text,
        "moves": {"forfeit" if move is None else str(move): n for move, n in sorted(moves.items(), key=str)},
    }
