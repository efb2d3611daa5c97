"""Settings of a run whose `out` is in a store."""

from __future__ import annotations

from pydantic import Field

from nlrl.orchestration.section import Section


class StoreConfig(Section):
    """How a run is kept in a store, where `out` is a URL."""

    cache: str = ""
    """The folder of local copies, on a disk that every actor of the run sees; by default `runs` in $NLRL_CACHE, else in
    ~/.cache/nlrl."""
    every_seconds: float = Field(default=15.0, gt=0)
    """How often new records of a stage in progress are put into the store: so much is lost with a machine."""
    lease_seconds: float = Field(default=60.0, gt=0)
    """A driver that was not heard of for so long counts as dead, and another machine may go on."""
