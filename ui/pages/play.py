"""The Play page: a person against any agent, with its arguments; the game is kept like any other."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import streamlit as st

from nlrl.backbones.language_model import LanguageModelError
from nlrl.errors import NLRLError
from nlrl.ui.agent_view import choose_game, choose_speaker, opened, show_answer
from nlrl.ui.links import REPLAY, Place, params_of
from nlrl.ui.pages.common import go, plain
from nlrl.ui.playing import LiveGame, played_folder, save
from nlrl.ui.speakers import Speaker, speakers

BEFORE, AFTER = "before my move", "after my move"
WALKER = "the agent"
TABLE, SAVED = "game being played", "place of the game played"


class Table(NamedTuple):
    """A game that is being played on this page."""

    live: LiveGame
    speaker: Speaker
    when: str
    """When the person is shown what the agent argues: `BEFORE` or `AFTER`."""


def show(folder: Path) -> None:
    """Draws the page."""
    table: Table | None = st.session_state.get(TABLE)
    if table is None:
        set_up(folder)
        return
    try:
        left, right = st.columns(2)
        with left:
            show_board(folder, table)
        with right:
            show_heard(table)
    except (NLRLError, LanguageModelError) as error:
        st.error(plain(str(error)))
    if st.button("New game", key="new game"):
        st.session_state.pop(TABLE, None)
        st.session_state.pop(SAVED, None)
        st.rerun()


def set_up(folder: Path) -> None:
    """Who plays what."""
    game = choose_game(st, "play game", "tictactoe")
    if game is None:
        return
    speaker = choose_speaker(st, "Against", speakers(folder, game.name), "play agent")
    seats = [*game.player_names] if game.num_players == 2 else ["I walk", WALKER]
    seat = st.radio("I play" if game.num_players == 2 else "Who walks", seats, horizontal=True, key="play seat")
    when = st.radio("Show its argument and evaluation", (BEFORE, AFTER), horizontal=True, key="play when")
    st.caption(f"Finished games are kept in {plain(str(played_folder(folder)))}.")
    if st.button("Start", type="primary", key="play start") and speaker is not None:
        person = None if seat == WALKER else seats.index(seat)
        st.session_state[TABLE] = Table(LiveGame(game, person), speaker, when)
        st.rerun()


def show_board(folder: Path, table: Table) -> None:
    """The board, and whose turn it is."""
    live, game = table.live, table.live.game
    if not live.is_over and not live.persons_turn and live.person is not None:
        live.answer(opened(table.speaker))
    last = live.play.actions[-1] if live.play.actions and live.play.actions[-1] >= 0 else None
    st.image(game.render_svg(live.state, last))
    if live.is_over:
        finish(folder, table)
    elif live.persons_turn:
        ask_person(live)
    elif st.button("Next step", type="primary", key="step"):
        live.answer(opened(table.speaker))
        st.rerun()


def ask_person(live: LiveGame) -> None:
    game, state = live.game, live.state
    st.caption(f"Your move, {game.player_names[game.current_player(state)]}.")
    action = st.selectbox(
        "Move",
        game.legal_actions(state),
        format_func=lambda action: game.action_text(state, action),
        key=f"move {live.ply}",
    )
    if st.button("Play it", type="primary", key="play it"):
        live.move(action)
        st.rerun()


def finish(folder: Path, table: Table) -> None:
    """Says how it ended, and keeps the game, once."""
    if SAVED not in st.session_state:
        st.session_state[SAVED] = save(folder, table.live, table.speaker.label, opened(table.speaker))
    place: Place = st.session_state[SAVED]
    st.success(outcome(table.live))
    if place.run and st.button("Replay it", key="replay it"):
        go(REPLAY, params_of(place))
    st.caption(f"Kept in {plain(str(played_folder(folder)))}.")


def outcome(live: LiveGame) -> str:
    """How the game ended, for the person."""
    result = live.play.result(live.game)
    if live.game.num_players == 1:
        words = {"win": "The goal is reached.", "loss": "The walk failed.", "cut": "No more steps are left."}
        return words.get(result, "The game is over.")
    if live.play.forfeited_by is not None:
        return "You win: the agent named no legal move."
    return {"win": "You lose.", "loss": "You win."}.get(result, "A draw.")


def show_heard(table: Table) -> None:
    """What the agent has said, the newest first; what would help with the move in hand only if that was wanted."""
    live = table.live
    hides = table.when == AFTER and not live.is_over and live.persons_turn
    plies = [ply for ply in sorted(live.heard, reverse=True) if not (hides and ply == live.ply - 1)]
    if hides and len(plies) < len(live.heard):
        st.caption("What it thinks of its last move is shown after yours.")
    for ply in plies:
        said, thought = live.heard[ply]
        with st.expander(f"Move {ply + 1}: {said.move or 'no legal move'}", expanded=ply == plies[0]):
            show_answer(said)
            if thought is not None:
                st.caption("Its evaluation of the position before that move")
                show_answer(thought)
