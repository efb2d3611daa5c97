"""`nlrl submit`: `ray job submit` for a run, with what goes wrong there refused before anything is uploaded.

1. The config is read and checked here; the job reads the same file from its copy of the working directory.
2. That copy is thrown away some time after the job, so `out` must be a path of its own (`check_out`, which `nlrl run`
   asks, too).
3. A submission id is used once: without one, NAME-1, NAME-2, ... are tried. To resume, submit again.
4. A cluster that has just started answers before it takes jobs; it is asked again until it does.

The equal `ray job submit` line is printed, and nothing is done that it would not do.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nlrl.errors import NLRLError
from nlrl.orchestration.config import RunConfig, load_config

IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where Ray tells a job's driver how it was submitted."""
PATIENCE = 60
"""Seconds that a cluster may take from its first answer to taking jobs."""


class Job(NamedTuple):
    """What is submitted."""

    config: Path
    """Relative to the working directory."""
    overrides: tuple[str, ...]
    """`--field value` of `nlrl run`."""
    address: str
    """http://HEAD:8265"""
    working_dir: Path
    submission_id: str
    num_cpus: float
    """Reserved for the driver; 0 starts it on the head node."""

    @property
    def entrypoint(self) -> str:
        return shlex.join(["nlrl", "run", self.config.as_posix(), *self.overrides])

    @property
    def line(self) -> str:
        """The equal command."""
        options = ["--address", self.address, "--working-dir", str(self.working_dir)]
        options += ["--submission-id", self.submission_id]
        options += ["--entrypoint-num-cpus", f"{self.num_cpus:g}"] if self.num_cpus else []
        return f"{shlex.join(['ray', 'job', 'submit', *options])} -- {self.entrypoint}"


def submit(
    config: Path,
    overrides: Sequence[str],
    address: str,
    submission_id: str = "",
    working_dir: Path = Path("."),
    num_cpus: float = 0,
    wait: bool = True,
) -> int:
    """Submits a run, prints the equal `ray job submit` line and, with `wait`, the job's log; returns 0 if it
    succeeded (without `wait`: was taken).

    Raises:
        NLRLError: the config cannot work, `out` would be lost, no cluster takes jobs at the address, or the submission
            id was used before.
    """
    found = config.absolute()
    if not found.is_relative_to(working_dir.absolute()):
        raise NLRLError(f"{config}: not in the working directory {working_dir}, the only one that travels with the job")
    resolved = _checked(found, overrides)
    client = _client(address)
    name = submission_id or _next_id(client, resolved.name)
    relative = found.relative_to(working_dir.absolute())
    job = Job(relative, tuple(overrides), address, working_dir, name, num_cpus)
    print(job.line, flush=True)
    _give(client, job)
    return _follow(client, name) if wait else 0


def check_out(out: Path | str, where: str) -> None:
    """Refuses a path that means a place in the job's copy of the working directory.

    Raises:
        NLRLError: it is relative.
    """
    if not Path(out).is_absolute() and not re.match(r"\w+:/", str(out)):
        raise NLRLError(
            f"out: {str(out)!r} would lie in {where}, which Ray deletes: name a folder that stays, "
            f"as in --out /shared/{out}"
        )


def check_in_job(out: Path | str) -> None:
    """The same, where this process is the driver of a job that was submitted with a working directory."""
    described = json.loads(os.environ.get(IN_JOB) or "{}")
    if described.get("runtime_env", {}).get("working_dir"):
        check_out(out, "the job's copy of its working directory")


# -- machinery ---------------------------------------------------------------------------------------------------------
def _checked(config: Path, overrides: Sequence[str]) -> RunConfig:
    from nlrl.orchestration.checks import check
    from nlrl.orchestration.overrides import overridden

    resolved = overridden(load_config(config), list(overrides))
    check_out(resolved.out, "the job's copy of the working directory")
    check(resolved)
    return resolved


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise NLRLError(f"address: no Ray cluster takes jobs at {address}: {_first_line(error)}") from error


def _next_id(client: Any, name: str) -> str:
    """NAME-1, or the next number; letters that Ray's own pages cannot show in an address are replaced."""
    used = {job.submission_id for job in client.list_jobs()}
    stem = re.sub(r"[^\w.-]+", "-", name)
    return next(found for n in range(1, len(used) + 2) if (found := f"{stem}-{n}") not in used)


def _give(client: Any, job: Job) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            client.submit_job(
                entrypoint=job.entrypoint,
                submission_id=job.submission_id,
                runtime_env={"working_dir": str(job.working_dir)},
                entrypoint_num_cpus=job.num_cpus or None,
            )
            return
        except (RuntimeError, ValueError) as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise NLRLError(f"{job.address} does not take the job: {_reason(error)}") from error
        time.sleep(1)


def _follow(client: Any, submission_id: str) -> int:
    import asyncio

    async def tail() -> None:
        async for text in client.tail_job_logs(submission_id):
            print(text, end="", flush=True)

    try:
        asyncio.run(tail())
    except KeyboardInterrupt:
        print(f"nlrl: the job goes on; `ray job stop {submission_id}` ends it", file=sys.stderr)
        return 130
    info = client.get_job_info(submission_id)
    print(f"{submission_id}: {info.status}{'' if str(info.status) == 'SUCCEEDED' else f': {info.message}'}")
    return 0 if str(info.status) == "SUCCEEDED" else 1


def _reason(error: Exception) -> str:
    """The last line of what the cluster said: before it come its own calls."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" .'\"")]
    return lines[-1] if lines else type(error).__name__


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
