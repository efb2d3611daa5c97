"""A diary for people: the same positions, asked again after every iteration, so that one can read an opinion change.

Answers are records of the evaluation stage; `evaluations.md` in the run's folder is written anew from all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from nlrl.agents.asking import Reply, ask
from nlrl.agents.language import number
from nlrl.agents.roles import Choice, StateInput
from nlrl.envs.game import Game
from nlrl.errors import NLRLError
from nlrl.orchestration.atomic import write_atomic
from nlrl.orchestration.config import RunConfig
from nlrl.orchestration.exact import action_values, optimal_values
from nlrl.orchestration.records import record_key
from nlrl.orchestration.session import CRITIC, Session
from nlrl.orchestration.stage_folder import Stage

FILE = "evaluations.md"
PROBES = {"tictactoe": ("", "1", "5 1", "1 5 9", "1 2 5", "5 1 9 3", "2 5 7 1 9")}
"""Moves from the start to positions worth asking about: quiet ones, threats to make, threats to stop."""


class Probe(NamedTuple):
    """A position of the diary."""

    moves: str
    state: Any
    ply: int


def probes(session: Session) -> list[Probe]:
    """The diary's positions."""
    return probe_list(session.config, session.game)


def probe_list(config: RunConfig, game: Game[Any]) -> list[Probe]:
    """The positions that a config names.

    Raises:
        NLRLError: `evaluation.probes` holds a move that is not legal where it stands.
    """
    return [_probe(game, line) for line in config.evaluation.probes or PROBES.get(game.name, ("",))]


def _probe(game: Game[Any], line: str) -> Probe:
    state = game.initial_states()[0]
    words = [line] if game.parse_action(state, line) is not None else moves_in(line)
    for word in words:
        action = game.parse_action(state, word)
        if action is None:
            raise NLRLError(f"evaluation.probes: '{word}' in '{line}' is not a legal move there")
        outcomes = [step.state for step in game.transitions(state, action)]
        if len(outcomes) > 1:
            raise NLRLError(f"evaluation.probes: chance decides where '{word}' in '{line}' leads; probe the start only")
        state = outcomes[0]
    if game.is_terminal(state):
        raise NLRLError(f"evaluation.probes: '{line}' ends the game; a probe needs a move to make")
    return Probe(line, state, len(words))


def moves_in(line: str) -> list[str]:
    """The moves of a line: between commas if it has any, between blanks otherwise."""
    return [word.strip() for word in line.split("," if "," in line else None) if word.strip()]


def write(session: Session, iteration: int, stage: Stage, greedy: Mapping[Any, Reply[Choice]]) -> None:
    """Asks about every probe, adds the answers to the stage's records, and rewrites `evaluations.md`."""
    found = probes(session)
    arguments = _arguments(session, found, greedy)
    evaluations = _evaluations(session, iteration, found)
    with stage.writer("diary") as writer:
        for probe in found:
            writer.write(_record(session, iteration, probe, arguments[probe.state], evaluations))
    entries = entries_of(session.folder) + [r for r in stage.records() if r["kind"] == "diary"]
    write_atomic(session.folder.path / FILE, render(session.game, entries).encode())


def _arguments(session: Session, found: list[Probe], greedy: Mapping[Any, Reply[Choice]]) -> dict[Any, Reply[Choice]]:
    missing = [probe.state for probe in found if probe.state not in greedy]
    role, sampling = session.student_roles.policy, session.sampling(0.0)
    asked = ask(session.actor, role, [StateInput(state) for state in missing], sampling)
    return dict(greedy) | dict(zip(missing, asked, strict=True))


def _evaluations(session: Session, iteration: int, found: list[Probe]) -> dict[tuple[Any, int], dict[str, Any]]:
    """The critic's text for every legal move of every probe, beside the exact values."""
    from nlrl.orchestration.stages.improvement import evaluate_moves
    from nlrl.orchestration.stages.policy_table import read_table

    game, optimal = session.game, optimal_values(session.game, [probe.state for probe in found])
    pairs = [(probe.state, action) for probe in found for action in game.legal_actions(probe.state)]
    exact, opponents = {}, session.exact_opposition()
    if iteration and opponents is not None:
        exact = action_values(game, read_table(session, iteration), opponents, pairs, session.config.targets.horizon)
    said = evaluate_moves(session, pairs)
    return {
        pair: {
            "action": pair[1],
            "text": evaluation.text if evaluation else None,
            "verdict": evaluation.verdict if evaluation else None,
            "exact_policy": round(exact[pair], 4) if pair in exact else None,
            "exact_optimal": optimal.get(pair),
        }
        for pair, evaluation in said.items()
    }


def _record(
    session: Session, iteration: int, probe: Probe, reply: Reply[Choice], evaluations: Mapping[Any, dict[str, Any]]
) -> dict[str, Any]:
    legal = session.game.legal_actions(probe.state)
    return {
        "schema": 1,
        "kind": "diary",
        "key": record_key("diary", session.config.name, session.config.seed, iteration, probe.moves),
        "iteration": iteration,
        "moves": probe.moves,
        "ply": probe.ply,
        "state": session.game.to_text(probe.state),
        "critic": session.versions[CRITIC],
        "argument": reply.completion.text,
        "action": reply.output.action if reply.output else None,
        "evaluations": [evaluations[(probe.state, action)] for action in legal],
    }


def entries_of(folder: Any) -> list[dict[str, Any]]:
    """All diary records of a run's committed evaluations."""
    from nlrl.orchestration.stages.evaluation import NAME

    stages = [stage for stage in folder.stages() if stage.name == NAME and stage.is_committed()]
    return [record for stage in stages for record in stage.records() if record["kind"] == "diary"]


def render(game: Game[Any], entries: list[dict[str, Any]]) -> str:
    """The diary as Markdown: one chapter a position, one entry an iteration."""
    lines = [
        "# Diary",
        "",
        "The same positions, asked again after every iteration. *Exact* is the value of the move for the policy that",
        "the critic judges (against the run's opponents), and under perfect play; the critic sees neither.",
    ]
    order = {entry["moves"]: (entry["ply"], entry["moves"]) for entry in entries}
    for moves in sorted(order, key=order.__getitem__):
        chapter = sorted((e for e in entries if e["moves"] == moves), key=lambda e: e["iteration"])
        title = f"After {moves}" if moves else "The start"
        lines += ["", f"## {title}", "", "```text", *chapter[0]["state"].splitlines(), "```"]
        for entry in chapter:
            lines += _entry(game, entry)
    return "\n".join(lines) + "\n"


def _entry(game: Game[Any], entry: dict[str, Any]) -> list[str]:
    state = game.parse_text(entry["state"])
    lines = ["", f"### Iteration {entry['iteration']}", "", *_quoted(entry["argument"]), ""]
    lines += [
        "| move | the critic says | verdict | exact, this policy | exact, perfect play |",
        "|---|---|---|---|---|",
    ]
    for e in entry["evaluations"]:
        text = " ".join((e["text"] or "(no readable answer)").split()).replace("|", "\\|")
        cells = [game.action_text(state, e["action"]), text, *(_number(e[k]) for k in _COLUMNS)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


_COLUMNS = ("verdict", "exact_policy", "exact_optimal")


def _quoted(text: str) -> list[str]:
    return [f"> {line}" for line in text.splitlines()] or ["> (nothing)"]


def _number(value: float | None) -> str:
    return "" if value is None else number(value)
