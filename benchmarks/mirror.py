"""What keeping a run in a store costs: the same stages written to a folder, and to a folder that a store follows.

    nlrl bench mirror                            a folder, a store in a folder, an S3 server on this machine's loopback
    nlrl bench mirror -- --places file           without the S3 server (which needs s3fs and moto[server])

Each round writes every place's stages in turn: records one by one, as games end, then a file of weights, then the
commit. Ratios are to the plain folder in the same round; lines show the median, and the least and the most. The S3
server is a Python process on the same machine, so its own work is in the figures: a real store is farther away and
faster. Afterwards the run is fetched as on another machine, and verified.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from nlrl.benchmarks.figures import machine
from nlrl.errors import NLRLError
from nlrl.orchestration.fetching import fetch
from nlrl.orchestration.run_folder import RunFolder
from nlrl.orchestration.store_config import StoreConfig
from nlrl.orchestration.verify import verify_run

FOLDER = "folder"
TEXT = "The centre is taken, the corners are open, and two lines can still be won. " * 6


class Seconds(NamedTuple):
    """What one place took."""

    write: float
    """All records of all stages."""
    commit: float
    """All commits, and opening and closing the run."""
    fetch: float = 0.0
    """The whole run, as on another machine."""
    verify: float = 0.0

    @property
    def run(self) -> float:
        return self.write + self.commit


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    print(f"{machine()}; {options.stages} stages of {options.records} records and {options.megabytes} MB of weights")
    found: dict[str, list[Seconds]] = {}
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder, _places(options.places, Path(folder)) as places:
            for name, place in places.items():
                found.setdefault(name, []).append(measure(place, Path(folder), options))
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    figures = {name: _figures(rounds, found[FOLDER]) for name, rounds in found.items()}
    for name, figure in figures.items():
        print(_line(name, figure))
    if options.json:
        given = {key: value for key, value in vars(options).items() if key != "json"}
        options.json.write_text(
            json.dumps({"machine": machine(), "options": given, "places": figures}, indent=1) + "\n"
        )
    return 0


def measure(place: str, folder: Path, options: argparse.Namespace) -> Seconds:
    """Writes a run at a place, and reads it back from there."""
    weights = os.urandom(int(options.megabytes * 1e6))
    settings = StoreConfig(cache=str(folder / "cache"), every_seconds=options.every)
    write, start = 0.0, time.perf_counter()
    with RunFolder.open(place, {"seed": 1}, "seed = 1\n", store=settings) as run:
        for iteration in range(options.stages):
            stage = run.stage(iteration, "rollout")
            begun = time.perf_counter()
            with stage.writer("games") as writer:
                for number in range(options.records):
                    writer.write({"schema": 1, "kind": "text", "key": f"{number:032x}", "text": TEXT})
            write += time.perf_counter() - begun
            with stage.file("weights.bin") as path:
                path.write_bytes(weights)
            stage.commit({}, files=["weights.bin"])
    seconds = Seconds(write, time.perf_counter() - start - write)
    if place == str(folder / FOLDER):
        return seconds._replace(verify=_timed(lambda: verify_run(place)))
    fetching = _timed(lambda: fetch(place, cache=str(folder / "other")))
    return seconds._replace(fetch=fetching, verify=_timed(lambda: verify_run(place)))


def _timed(act) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def _figures(rounds: list[Seconds], plain: list[Seconds]) -> dict[str, object]:
    """Medians in seconds, and ratios to the folder of the same round."""
    ratios = {
        field: sorted(getattr(one, field) / getattr(base, field) for one, base in zip(rounds, plain, strict=True))
        for field in ("write", "run")
    }
    return {
        "seconds": {field: round(median(getattr(one, field) for one in rounds), 4) for field in Seconds._fields},
        "ratios": {field: [round(value, 3) for value in (median(r), r[0], r[-1])] for field, r in ratios.items()},
    }


def _line(name: str, figure: dict) -> str:
    seconds, ratios = figure["seconds"], figure["ratios"]
    shown = ", ".join(f"{field} {seconds[field]:.3f} s" for field in Seconds._fields)
    write, run = (f"{ratios[field][0]:.2f} ({ratios[field][1]:.2f} to {ratios[field][2]:.2f})" for field in ratios)
    return f"{name:8} {shown}; beside the folder: writing records {write}, with commits {run}"


# -- places ------------------------------------------------------------------------------------------------------------
@contextmanager
def _places(names: Sequence[str], folder: Path) -> Iterator[dict[str, str]]:
    places = {FOLDER: str(folder / FOLDER)}
    if "file" in names:
        places["file"] = f"file://{folder}/store/run"
    if "s3" not in names:
        yield places
        return
    with _s3_server() as bucket:
        yield places | {"s3": f"{bucket}/run-{time.monotonic_ns()}"}


@contextmanager
def _s3_server() -> Iterator[str]:
    """A bucket in an S3 server of its own process."""
    try:
        import fsspec
        import moto.server  # noqa: F401
        import s3fs  # noqa: F401
    except ImportError as error:
        raise NLRLError(f"{error}: pip install s3fs 'moto[server]', or use --places file") from error
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    keys = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(keys, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("runs")
        type(fsspec.filesystem("s3")).clear_instance_cache()
        yield "s3://runs"
    finally:
        server.kill()
        server.wait()


def _wait(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise NLRLError("the S3 server did not start")


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "nlrl bench mirror", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--places", nargs="*", choices=["file", "s3"], default=["file", "s3"])
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--records", type=int, default=60_000, help="of a stage")
    parser.add_argument("--megabytes", type=float, default=8.0, help="of weights, in each stage")
    parser.add_argument("--every", type=float, default=0.2, help="seconds between pieces; a run's default is 15")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
