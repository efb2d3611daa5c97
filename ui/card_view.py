"""Draws the card of a move. Whatever a model wrote goes through `st.code`, as it is."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from nlrl.agents.language import number
from nlrl.agents.metrics.claims import Claim
from nlrl.backbones.language_model import Message
from nlrl.orchestration.records import Record
from nlrl.ui.cards import Card, Improvement, Merge, claims_line
from nlrl.ui.reading import harmless
from nlrl.ui.tables import claim_rows, shown


def show_card(card: Card, records: Sequence[Record] = ()) -> None:
    """What was asked and answered, what the critic thought of the candidates, where its targets came from, and every
    record about the position as it is."""
    if card == Card() and not records:
        st.caption("The records hold nothing about this position beyond the board.")
        return
    answer, candidates, targets, everything = st.tabs(
        [
            "Answer",
            f"Candidates and I ({len(card.improvements)})",
            f"Targets: G2 and G1 ({len(card.merges)})",
            f"Records ({len(records)})",
        ]
    )
    with answer:
        show_answer(card)
    with candidates:
        for improvement in card.improvements:
            show_improvement(improvement)
        if not card.improvements:
            st.caption("No record of this iteration holds candidates for this position.")
    with targets:
        show_targets(card.merges, card.look_aheads)
    with everything:
        show_records(records)


def show_records(records: Sequence[Record]) -> None:
    """One record, of those that the iteration holds about the position."""
    if not records:
        st.caption("No record of this iteration is about this position.")
        return
    kinds = [f"{at + 1}. {record['kind']}" for at, record in enumerate(records)]
    at = st.selectbox("Record", range(len(records)), format_func=kinds.__getitem__)
    st.json(records[at or 0])


def show_answer(card: Card) -> None:
    if card.facts:
        st.caption(harmless(" · ".join(f"{name}: {value}" for name, value in card.facts.items())))
    if not card.reply:
        st.caption("The record keeps no answer for this move.")
        return
    code(card.reply)
    st.caption(harmless(f"Parsed move: {card.parsed}"))
    show_claims(card.claims)
    if card.evaluation:
        st.caption("Its evaluation of the position")
        code(card.evaluation)
    show_prompt(card.prompt)


def show_improvement(found: Improvement) -> None:
    rows = [
        {
            "move": f"{one.move} ●" if one.move == found.chosen else one.move,
            "critic": number(one.verdict),
            "exact": shown(one.exact),
            "evaluation": one.text,
            "claims by the rules": claims_line(one.claims),
        }
        for one in found.candidates
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True)
    if found.unread:
        st.caption(harmless(f"Evaluations of {', '.join(found.unread)} could not be read."))
    if found.text:
        st.caption(harmless(f"I chose {found.chosen}" if found.chosen else f"I failed: {', '.join(found.failures)}"))
        code(found.text)
        show_claims(found.claims)
    show_prompt(found.prompt)


def show_targets(merges: Sequence[Merge], look_aheads: Sequence[str]) -> None:
    if look_aheads:
        st.caption("Look-aheads that G2 joined with what V says of where they lead")
        code(numbered(look_aheads))
    if not merges:
        st.caption("No record of this iteration holds targets for this position.")
        return
    labels = [f"{at + 1}. {merge.about}: {shown(merge.verdict)}" for at, merge in enumerate(merges)]
    at = st.selectbox("Call of G1", range(len(merges)), format_func=labels.__getitem__)
    merge = merges[at or 0]
    st.caption("In: games played on" if merge.kind == "games" else "In: texts of G2")
    code(numbered(merge.inputs))
    if merge.fused:
        with st.expander("What G2 was given for each"):
            for at, (played, successor) in enumerate(merge.fused, 1):
                st.caption(f"{at}. The moves, and the evaluation of where they led")
                code(f"{played}\n{successor}")
    st.caption(harmless(f"Out: {shown(merge.verdict)}" if not merge.failures else f"Out, after {merge.failures}"))
    code(merge.output)
    show_claims(merge.claims)
    if merge.learned is not None:
        st.caption("What the critic learns of it, without what only G1 saw")
        code(merge.learned)
    show_prompt(merge.prompt)


def numbered(texts: Sequence[str]) -> str:
    return "\n".join(f"{at}. {text}" for at, text in enumerate(texts, 1))


def show_claims(claims: Sequence[Claim]) -> None:
    """The claims of a text that the rules decide."""
    if claims:
        st.dataframe(pd.DataFrame(claim_rows(claims)), hide_index=True)


def show_prompt(messages: Sequence[Message], label: str = "Prompt (built again from the position)") -> None:
    """A prompt, folded."""
    if messages:
        with st.expander(label):
            for message in messages:
                st.caption(message.role)
                code(message.content)


def code(text: str) -> None:
    """A text that nobody vouches for."""
    st.code(text, language=None, wrap_lines=True)
