"""Where the actors of a run live, as its config says it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nlrl.orchestration.section import Section


class ClusterConfig(Section):
    """Where the actors live."""

    kind: Literal["ray", "inline"] = "ray"
    """ray: actors on a Ray cluster, a local one if there is none. inline: all in this process, for tests and
    debuggers."""
    address: str | None = None
    """A Ray cluster's address; the job's own cluster inside `ray job submit`."""
    threads: int = Field(default=0, ge=0)
    """CPU cores for the model and the trainer, which take turns; 0 takes the machine's."""
    servers: int = Field(default=0, ge=0)
    """Model servers that share the prompts; 0 is one on each GPU that serves, and one a core on a CPU."""
    trainers: int = Field(default=1, ge=1)
    """Processes that train a native model together, each on a GPU of its own where there are GPUs; see
    docs/training.md. Needs kind "ray"."""
    gpus: int | None = Field(default=None, ge=0)
    """Native models: GPUs that servers, trainers and frozen agents are spread over. By default one, if there is one."""
    placement: Literal["colocated", "separate"] = "colocated"
    """colocated: servers and trainers share GPUs. separate: each trainer has one for itself; with staleness it works
    while the others serve."""
    gpus_per_server: float | None = Field(default=None, gt=0, le=1)
    """Native models: the share of a GPU that each server takes; by default what is there in equal parts."""
    trainer_gpus: float | None = Field(default=None, gt=0, le=1)
    """Native models: the same of each trainer."""
    worker_cpus: float = Field(default=0, ge=0)
    """CPUs that Ray keeps for each rollout worker; 0: they run wherever they are started."""
    spread: bool = False
    """Spread rollout workers over the machines of the cluster."""
