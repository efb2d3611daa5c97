"""A person's game against an agent, kept as any other game is: a record in a run folder of its own.

    RUNS/played/GAME-AGENT/config.toml                                  the game and the agent's model
    RUNS/played/GAME-AGENT/iterations/001/play/shards/games.jsonl       one record a finished game

The stage is never committed, because further games are added to it; readers take it for one that is being written.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nlrl.envs.game import Game
from nlrl.envs.random import Rng
from nlrl.errors import NLRLError
from nlrl.orchestration.config import GameConfig, RunConfig, to_toml
from nlrl.orchestration.players import NONE, Play, move_or_forfeit
from nlrl.orchestration.records import Record, record_key
from nlrl.orchestration.run_folder import CONFIG_FILE, RunFolder
from nlrl.orchestration.worker import play_record
from nlrl.ui.links import Place
from nlrl.ui.speakers import Answer, Opened, ask_in_role

PERSON = "person"
PLAYED = "played"
STAGE = (1, "play")


@dataclass
class LiveGame:
    """A game on its way. The agent is the policy under study, the person its opponent; alone there is no opponent.

    Raises:
        NLRLError: there is no such seat.
    """

    game: Game[Any]
    person: int | None
    """The person's seat; None where the agent walks alone."""
    seed: int = field(default_factory=lambda: secrets.randbits(62))
    evaluate: bool = True
    """Ask the agent what it thinks of each position in which it moves."""

    def __post_init__(self) -> None:
        if self.person is not None and self.person not in range(self.game.num_players):
            raise NLRLError(f"seat: {self.person} is not a seat of {self.game.spec}")
        rng = Rng(self.seed)
        start = self.game.initial_state(rng)
        seat = 0 if self.person is None or self.game.num_players == 1 else 1 - self.person
        opponent = NONE if self.game.num_players == 1 else PERSON
        self.play = Play(start, seat, opponent, rng)
        self.start, self.states = start, [start]
        self.heard: dict[int, tuple[Answer, Answer | None]] = {}
        """By ply: the agent's answer, and its evaluation of that position."""

    @property
    def state(self) -> Any:
        return self.play.state

    @property
    def is_over(self) -> bool:
        return self.play.is_over(self.game)

    @property
    def persons_turn(self) -> bool:
        return not self.is_over and self.game.current_player(self.state) == self.person

    @property
    def ply(self) -> int:
        return len(self.play.actions)

    def move(self, action: int) -> None:
        """The person's move.

        Raises:
            NLRLError: it is not the person's turn, or the move is not legal.
        """
        if not self.persons_turn:
            raise NLRLError("it is not your turn")
        if action not in self.game.legal_actions(self.state):
            raise NLRLError(f"that is no legal move here; legal: {self.legal}")
        self._play(action)

    @property
    def legal(self) -> str:
        return " ".join(self.game.action_text(self.state, action) for action in self.game.legal_actions(self.state))

    def answer(self, opened: Opened) -> None:
        """The agent's move; a reply that names none forfeits, or costs what the rules say.

        Raises:
            NLRLError: it is not the agent's turn, or its model cannot answer.
        """
        if self.is_over or self.persons_turn:
            raise NLRLError("it is not the agent's turn")
        said = ask_in_role(opened, self.game, "policy", self.state)
        thought = ask_in_role(opened, self.game, "V", self.state) if self.evaluate else None
        self.heard[self.ply] = said, thought
        self.play.replies[self.ply] = said.reply
        self._play(said.reply.output.action if said.reply.output else None)

    def _play(self, action: int | None) -> None:
        move_or_forfeit(self.game, self.play, action)
        if self.play.forfeited_by is None:
            self.states.append(self.state)

    def record(self) -> Record:
        """The record of a game that is over: a rollout's, with what the agent thought, how long it took and whose
        weights spoke."""
        key = record_key("played", self.game.spec, self.seed, tuple(self.play.actions))
        record: Record = play_record(self.game, key, self.start, self.play) | {"person": self.person}
        turns: list[dict[str, Any]] = record["turns"]
        for turn in turns:
            said, thought = self.heard[turn["ply"]]
            turn |= {"seconds": round(said.seconds, 3), "weights": said.weights}
            turn |= {"evaluation": thought.text, "verdict": thought.verdict} if thought else {}
        return record


# -- saving ------------------------------------------------------------------------------------------------------------
def save(folder: Path, live: LiveGame, label: str, opened: Opened) -> Place:
    """Adds a finished game to the person's own run against this agent; returns where it can be replayed.

    Args:
        folder: of runs.
        label: of the agent.

    Raises:
        NLRLError: the game is not over, or nothing can be written there.
    """
    if not live.is_over:
        raise NLRLError("the game is not over yet")
    home = played_folder(folder)
    out = home / slug(f"{live.game.spec}-{label}")
    config = RunConfig(
        name=slug(label),
        out=str(out),
        game=GameConfig(name=live.game.name, params=live.game.params),
        model=opened.config,
    )
    record = live.record()
    try:
        with RunFolder.open(out, config.model_dump(mode="json", exclude_none=True), to_toml(config), ("out",)) as run:
            stage = run.stage(*STAGE)
            with stage.writer("games") as writer:
                writer.write(record)
    except OSError as error:
        raise NLRLError(f"{out}: the game cannot be saved: {error}") from error
    inside = out.resolve().is_relative_to(folder.resolve())
    name = out.resolve().relative_to(folder.resolve()).as_posix() if inside else ""
    return Place(name, f"{STAGE[0]:03d}/{STAGE[1]}", record["key"])


def played_folder(folder: Path) -> Path:
    """Where people's games are kept: in the folder of runs, beside it where that is itself a run, which nobody but its
    own job writes to."""
    return (folder.resolve().parent if (folder / CONFIG_FILE).is_file() else folder) / PLAYED


def slug(text: str) -> str:
    """A folder's name: lower-case words."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80] or "game"
