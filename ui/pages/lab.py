"""The Lab: set up or branch from any position, ask any agent, compare two, and watch one backup happen."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pandas as pd
import streamlit as st

from nlrl.agents.language import number
from nlrl.backbones.language_model import LanguageModelError
from nlrl.errors import NLRLError
from nlrl.ui.agent_view import choose_game, choose_speaker, opened, show_answer
from nlrl.ui.backup import Event, Question, back_up
from nlrl.ui.card_view import code
from nlrl.ui.exact import exact_values
from nlrl.ui.game_records import find_game, find_run, game_of, stage_folder
from nlrl.ui.links import Place, place_of
from nlrl.ui.pictures import gauge
from nlrl.ui.positions import Variation, read_position
from nlrl.ui.reading import harmless
from nlrl.ui.replay import make_replay
from nlrl.ui.speakers import ROLES, Answer, RoleName, Speaker, ask_in_role, speakers
from nlrl.ui.tables import result_word, shown
from nlrl.ui.word_diff import diff_html

SECONDS = 3.0
"""For the exact values of one position."""


def show(folder: Path) -> None:
    """Draws the page. An address may name a replay's position to branch from."""
    branch_from(folder, place_of(st.query_params))
    left, right = st.columns([2, 3])
    with left:
        variation = set_up()
    if variation is None:
        return
    found = speakers(folder, variation.game.name)
    with left:
        show_board(variation)
    with right:
        asking, backing = st.tabs(["Ask", "Back up with G1"])
        with asking:
            ask_agents(variation, found)
        with backing:
            back_up_live(variation, found)


# -- the position ------------------------------------------------------------------------------------------------------
def branch_from(folder: Path, place: Place) -> None:
    """Puts the position of an address on the board, once."""
    if not place.game or ("lab text" in st.session_state and st.session_state.get("lab place") == place):
        return
    st.session_state["lab place"] = place
    try:
        run = find_run(folder, place.run)
        stage = run and stage_folder(run, place.stage)
        record = stage and find_game(stage, place.game)
        if not run or not record:
            raise NLRLError("there is no such game")
        replay = make_replay(game_of(run, record), record, seconds=0.0)
    except NLRLError as error:
        st.warning(f"The address names no position: {harmless(str(error))}")
        return
    state = replay.states[min(place.ply, len(replay.states) - 1)]
    st.session_state["lab game"] = replay.game.spec
    st.session_state["lab text"] = replay.game.to_text(state)


def set_up() -> Variation | None:
    """The position that the fields describe, with the moves that were tried from it."""
    game = choose_game(st, "lab game", "tictactoe")
    if game is None:
        return None
    text = st.text_area(
        "Position",
        key="lab text",
        height=160,
        help="A board as the game prints it, or moves from the start; empty: the start",
    )
    if st.session_state.get("lab basis") != (game.spec, text):
        st.session_state["lab basis"], st.session_state["lab moves"] = (game.spec, text), []
    try:
        variation = read_position(game, text)
    except NLRLError as error:
        st.error(harmless(str(error)))
        return None
    for action, outcome in st.session_state["lab moves"]:
        variation = variation.played(action, outcome)
    return variation


def show_board(variation: Variation) -> None:
    """The board, its exact values, and the moves that may be tried."""
    game, state = variation.game, variation.state
    exact = exact_values(game, [state], SECONDS)[0]
    marks = {action: number(value) for action, value in exact.q.items() if value is not None}
    st.image(game.render_svg(state, variation.last_move, None, marks))
    if variation.moves:
        st.caption(harmless(f"Tried: {' '.join(variation.moves)}"))
    if st.button("Take back", disabled=not variation.actions):
        st.session_state["lab moves"].pop()
        st.rerun()
    if game.is_terminal(state):
        st.info("The game is over here.")
        return
    if exact.reason:
        st.caption(harmless(f"Some exact values are unknown: {exact.reason}"))
    try_move(variation)
    rows = [
        {
            "move": game.action_text(state, action),
            "exact": shown(value),
            "result": "unknown" if value is None else result_word(value, game.num_players),
        }
        for action, value in exact.q.items()
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True)


def try_move(variation: Variation) -> None:
    left, middle, right = st.columns([2, 2, 1], vertical_alignment="bottom")
    action = choose_move(left, variation, "lab move")
    outcomes = variation.outcomes(action)
    names = [f"{number_ + 1}: {likely}" for number_, (likely, _) in enumerate(outcomes)]
    outcome = 0
    if len(outcomes) > 1:
        outcome = middle.selectbox("Chance chooses", range(len(names)), format_func=names.__getitem__)
    if right.button("Try it"):
        st.session_state["lab moves"].append((action, outcome))
        st.rerun()


def choose_move(where: Any, variation: Variation, key: str) -> int:
    game, state = variation.game, variation.state
    legal = game.legal_actions(state)
    return where.selectbox("Move", legal, format_func=lambda action: game.action_text(state, action), key=key)


# -- asking ------------------------------------------------------------------------------------------------------------
def ask_agents(variation: Variation, found: dict[str, Speaker]) -> None:
    """One or two agents in one role, side by side."""
    if variation.game.is_terminal(variation.state):
        st.caption("There is nothing to ask: the game is over here.")
        return
    left, right = st.columns(2)
    one = choose_speaker(left, "Agent", found, "lab one")
    other = choose_speaker(right, "Beside it", found, "lab other", nobody="nobody")
    role = cast(RoleName, left.segmented_control("Role", ROLES, default="policy", key="lab role") or "policy")
    action = choose_move(right, variation, "lab asked move") if role == "Q" else None
    temperature = right.slider("Temperature", 0.0, 1.5, 0.0, 0.1, key="lab temperature")
    if st.button("Ask", type="primary", key="lab ask"):
        asked = [speaker for speaker in (one, other) if speaker]
        answers = [answer for speaker in asked if (answer := ask(speaker, variation, role, action, temperature))]
        st.session_state["lab answers"] = (variation, answers, [speaker.label for speaker in asked])
    of, answers, labels = st.session_state.get("lab answers") or (None, [], [])
    if of is None or of.state != variation.state or of.game.spec != variation.game.spec:
        return
    for answer, label, column in zip(answers, labels, st.columns(max(1, len(answers))), strict=False):
        with column:
            st.caption(harmless(label))
            show_answer(answer)
    if len(answers) == 2:
        st.caption("Word by word: struck through only the first says, underlined only the second.")
        st.html(diff_html(answers[0].text, answers[1].text))


def ask(
    speaker: Speaker, variation: Variation, role: RoleName, action: int | None, temperature: float
) -> Answer | None:
    """An answer; says why there is none."""
    try:
        return ask_in_role(opened(speaker), variation.game, role, variation.state, action, temperature)
    except (NLRLError, LanguageModelError) as error:
        st.error(harmless(f"{speaker.label}: {error}"))
        return None


# -- a backup ----------------------------------------------------------------------------------------------------------
def back_up_live(variation: Variation, found: dict[str, Speaker]) -> None:
    """K continuations, one after another, and what G1 makes of them."""
    if variation.game.is_terminal(variation.state):
        return
    left, middle, right = st.columns(3)
    player = choose_speaker(left, "Plays and evaluates", found, "lab player")
    teacher = choose_speaker(middle, "G1 and G2", found, "lab teacher")
    opponent = right.text_input("Opponent", "random", key="lab opponent") if variation.game.num_players > 1 else "none"
    count = int(left.slider("K continuations", 1, 9, 8, key="lab k"))
    steps = int(middle.number_input("Moves before V (0: whole games)", 0, 20, 0, key="lab steps"))
    with right:
        first = choose_first(variation)
    if not st.button("Back up", type="primary", key="lab back up") or not player or not teacher:
        return
    question = Question(variation.state, first, opponent, count, steps or None)
    try:
        show_events(back_up(variation.game, question, opened(player), opened(teacher)), count)
    except (NLRLError, LanguageModelError) as error:
        st.error(harmless(str(error)))


def choose_first(variation: Variation) -> int | None:
    game, state = variation.game, variation.state
    options = [None, *game.legal_actions(state)]
    return st.selectbox(
        "First move",
        options,
        format_func=lambda action: "the policy's" if action is None else game.action_text(state, action),
        key="lab first",
    )


def show_events(events: Iterable[Event], count: int) -> None:
    """Draws each text when it comes, the mean of the verdicts so far beside them, and G1's text last."""
    bar, mean = st.progress(0.0, "Playing on"), st.empty()
    verdicts: list[float] = []
    for event in events:
        draw_event(event)
        if event.step in ("game", "V") and event.verdict is not None:
            verdicts.append(event.verdict)
            mean.image(gauge("mean of the continuations", sum(verdicts) / len(verdicts), ("bad", "good"), exact=True))
        if event.step == "G1":
            bar.progress(1.0, "Merged by G1")
            st.image(gauge("G1 says", event.verdict, ("bad", "good"), exact=False))
        else:
            bar.progress(min(1.0, (event.sample + 1) / (count + 1)), f"Continuation {event.sample + 1} of {count}")


def draw_event(event: Event) -> None:
    value = "" if event.verdict is None else f": {number(event.verdict)}"
    st.caption("G1" + value if event.sample < 0 else f"{event.sample + 1}. {event.step}{value}")
    code(event.text)
