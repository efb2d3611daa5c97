"""The league that a run holds beside its evaluation."""

from __future__ import annotations

from pydantic import Field, field_validator

from nlrl.orchestration.section import Section


class RunLeagueConfig(Section):
    """Rounds of a league within the run: the agent, its own past and named players meet and are rated."""

    every: int = Field(default=0, ge=0)
    """A round after every so many iterations; 0: none. For one at the end, as many as `iterations`."""
    members: tuple[str, ...] = Field(default=("random", "checkpoint(0)", "checkpoint(last)"), min_length=1)
    """Whom the agent meets: named as in rollout.opponents, without self; `checkpoint(all)` is every past agent. Games
    of earlier rounds are kept, and so are the ratings of who is no longer named."""
    pairs: int = Field(default=20, gt=0)
    """Seat-swapped pairs of games between each two members."""
    temperature: float = Field(default=1.0, ge=0)
    """Of the agent and of checkpoints whose names say none. At 0 two agents play the same game again and again."""
    anchor: str | None = None
    """The member whose rating is 0, one that is in every round; the average of all, if not given."""

    @field_validator("members")
    @classmethod
    def _different(cls, members: tuple[str, ...]) -> tuple[str, ...]:
        return different(members)


def different(members: tuple[str, ...]) -> tuple[str, ...]:
    """The members.

    Raises:
        ValueError: one is named twice.
    """
    twice = {name for name in members if members.count(name) > 1}
    if twice:
        raise ValueError(f"{', '.join(sorted(twice))} would meet itself: every member is named once")
    return members
