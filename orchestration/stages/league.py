"""A league within the run: after every so many iterations the agent, its past checkpoints and named players meet in
seat-swapped pairs and are rated.

1. A round plays the meetings that no earlier round has played: two checkpoints meet once and for all. Its ratings are
   of all games so far.
2. Games are those of `nlrl league`: their course depends on the run's seed, the two names and the number of the pair.
3. Two members play at a time, so the weights of two checkpoints are held at most.
"""

from __future__ import annotations

from itertools import groupby

from nlrl.envs.random import derive_seed
from nlrl.orchestration.budget import Entry
from nlrl.orchestration.checkpoints import Checkpoint, Standing, meanings
from nlrl.orchestration.league import (
    AT_ONCE,
    RATINGS_FILE,
    LeagueConfig,
    Match,
    figures,
    matches,
    meetings,
    played,
    write_ratings,
)
from nlrl.orchestration.league_config import RunLeagueConfig
from nlrl.orchestration.progress import progress
from nlrl.orchestration.ratings import rate
from nlrl.orchestration.session import Session
from nlrl.orchestration.stage_folder import Stage
from nlrl.orchestration.stages.rollout import chunks

NAME = "league"


def run_league_round(session: Session, iteration: int) -> None:
    """Plays the round after an iteration, and commits its games and everybody's ratings."""
    config, stage = session.config.league, session.folder.stage(iteration, NAME)
    if stage.is_committed():
        return
    standing = session.opposition.standing(iteration)
    members = members_of(config, standing)
    league = LeagueConfig(game=session.game.spec, members=members, pairs=config.pairs, seed=session.seed(NAME))
    before = {r["key"]: r for i in range(iteration) for r in session.folder.stage(i, NAME).records()}
    due = [match for match in matches(league, session.game) if match.key not in before]
    owed = set(stage.owed([match.key for match in due]))
    play_round(session, stage, [match for match in due if match.key in owed])
    records = before | {record["key"]: record for record in stage.records()}
    ratings = rate(meetings(records.values()), anchor_of(config, standing))
    with stage.file(RATINGS_FILE) as path:
        write_ratings(path, session.game, ratings)
    rows = {rating.name: figures(rating) for rating in ratings}
    stage.commit({"games": len(due), "agent": rows[members[0]], "ratings": rows}, [RATINGS_FILE])


def members_of(config: RunLeagueConfig, standing: Standing) -> tuple[str, ...]:
    """Who meets in a round: the current agent, then those that the config names."""
    agent = Checkpoint(standing.current, config.temperature).at(standing.current)
    others = [one for name in config.members for one in meanings(name, standing.meant, config.temperature)]
    return tuple(dict.fromkeys((agent, *others)))


def anchor_of(config: RunLeagueConfig, standing: Standing) -> str | None:
    """The member whose rating is 0."""
    return None if config.anchor is None else meanings(config.anchor, standing.meant, config.temperature)[0]


def play_round(session: Session, stage: Stage, owed: list[Match]) -> None:
    """Plays games into a stage, the meetings of two members together."""
    game = session.game
    with stage.writer("games") as writer, progress(f"iteration {stage.iteration}: league", len(owed)) as bar:
        for names, meeting in groupby(owed, key=lambda match: tuple(sorted(match.players))):
            session.opposition.hold(names)
            players = {name: session.opposition.make(name, session.meter) for name in names}
            for group in chunks(list(meeting), AT_ONCE):
                records = played(game, group, players)
                session.meter.note([Entry(derive_seed(match.key), len(match.actions)) for match in group])
                writer.write_many(records)
                writer.flush()
                bar.advance(len(group))
