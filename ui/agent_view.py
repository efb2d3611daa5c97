"""Choosing, opening and showing agents, on the pages that ask them."""

from __future__ import annotations

from typing import Any

import streamlit as st

from nlrl.agents.language import number
from nlrl.envs import make_from_spec
from nlrl.envs.game import Game
from nlrl.errors import NLRLError
from nlrl.ui.card_view import code, show_claims, show_prompt
from nlrl.ui.reading import harmless
from nlrl.ui.speakers import Answer, Opened, Speaker, open_speaker

DEFAULT = "transformer-base"


@st.cache_resource(max_entries=6, show_spinner="Opening the model ...")
def opened(speaker: Speaker) -> Opened:
    """An agent, opened once for all sessions."""
    return open_speaker(speaker)


def choose_speaker(where: Any, label: str, found: dict[str, Speaker], key: str, nobody: str = "") -> Speaker | None:
    """A selection of an agent.

    Args:
        nobody: what "no agent" is called; empty if one must be chosen.
    """
    options = ([nobody] if nobody else []) + list(found)
    index = 0 if nobody or DEFAULT not in options else options.index(DEFAULT)
    return found.get(where.selectbox(label, options, index=index, key=key))


def choose_game(where: Any, key: str, spec: str) -> Game[Any] | None:
    """A game by its name and parameters; says what is wrong with them."""
    st.session_state.setdefault(key, spec)
    given = where.text_input("Game", key=key, help="tictactoe, breakthrough(rows=5,columns=5), frozen_lake, ...")
    try:
        return make_from_spec(given)
    except NLRLError as error:
        st.error(harmless(str(error)))
        return None


def show_answer(answer: Answer) -> None:
    """What an agent said, and what is to be said of it."""
    parts = [f"move: {answer.move}" if answer.move else "", f"{answer.tokens} tokens", f"{answer.seconds:.2f} s"]
    parts += [f"value: {number(answer.verdict)} for the player to move" if answer.verdict is not None else ""]
    parts += [f"weights: {answer.weights}", f"failed: {', '.join(answer.failures)}" if answer.failures else ""]
    st.caption(harmless(" · ".join(filter(None, parts))))
    code(answer.text)
    show_claims(answer.claims)
    show_prompt(answer.prompt, "Prompt")
