"""`python -m nlrl.testing.fuzz --minutes 10`: every target under atheris, guided by coverage; writes what was tried.

Needs atheris (pip install atheris), in whatever environment this runs in. Each target is a process of its own, which
libFuzzer ends; a finding is kept as a file that `--replay FILE --target NAME` tries again.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

MOST_BYTES = 8192
MEGABYTES = 6144
DONE = re.compile(r"Done (\d+) runs? in (\d+) second")
COVERED = re.compile(r"cov: (\d+)")


def main() -> int:
    given = _arguments().parse_args()
    if given.one:
        return _one(given.one, given.rest)
    from nlrl.testing.fuzz import targets

    known = targets()
    chosen = given.target or list(known)
    if unknown := [name for name in chosen if name not in known]:
        print(f"no target {unknown[0]!r}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    if given.replay:
        for name in chosen:
            print(name, "read" if known[name].check(Path(given.replay).read_bytes()) else "refused")
        return 0
    return _all(chosen, given)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nlrl.testing.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="for all targets together")
    parser.add_argument("--target", action="append", help="only this one; may be given several times")
    parser.add_argument("--out", type=Path, help="JSON file for what was tried")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="folder for inputs that failed")
    parser.add_argument("--replay", help="try the input in this file once, without atheris")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    return parser


def _all(names: list[str], given: Any) -> int:
    rows: list[dict[str, Any]] = []
    for name in names:
        rows.append(_tried(name, given.minutes * 60 / len(names), given.findings))
        outcome = "FAILED" if rows[-1]["crashes"] else "ok"
        print(f"{name:22} {rows[-1]['executions']:>9,} executions {outcome}", flush=True)
        if given.out:
            given.out.write_text(json.dumps(_report(rows, given.minutes), indent=1) + "\n")
    report = _report(rows, given.minutes)
    print(f"{report['executions']:,} executions in {report['minutes']} minutes, {report['crashes']} crashes")
    return 1 if report["crashes"] else 0


def _report(rows: list[dict[str, Any]], minutes: float) -> dict[str, Any]:
    return {
        "command": f"python -m nlrl.testing.fuzz --minutes {minutes:g}",
        "versions": {"python": platform.python_version(), "atheris": version("atheris")},
        "minutes": round(sum(row["seconds"] for row in rows) / 60, 1),
        "executions": sum(row["executions"] for row in rows),
        "crashes": sum(row["crashes"] for row in rows),
        "targets": rows,
    }


def _tried(name: str, seconds: float, findings: Path) -> dict[str, Any]:
    findings.mkdir(parents=True, exist_ok=True)
    prefix = findings / re.sub(r"\W+", "-", name)
    flags = (
        f"-max_total_time={max(1, round(seconds))}", f"-max_len={MOST_BYTES}", "-timeout=10", "-print_final_stats=1",
        f"-rss_limit_mb={MEGABYTES}", f"-artifact_prefix={prefix}-", "-verbosity=1",
    )  # fmt: skip
    began = time.monotonic()
    command = [sys.executable, "-m", "nlrl.testing.fuzz", "--one", name, "--", *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    crashed = done.returncode != 0
    if crashed:
        prefix.with_suffix(".txt").write_text(done.stdout[-20_000:])
    runs = DONE.search(done.stdout)
    reached = [int(found) for found in re.findall(r"^#(\d+)", done.stdout, re.MULTILINE)]
    covered = [int(found) for found in COVERED.findall(done.stdout)]
    return {
        "target": name,
        "executions": int(runs[1]) if runs else max(reached, default=0),
        "seconds": int(runs[2]) if runs else round(time.monotonic() - began),
        "branches": max(covered, default=0),
        "crashes": int(crashed),
    }


def _one(name: str, flags: list[str]) -> int:
    """A single target, until libFuzzer ends the process."""
    atheris: Any = import_module("atheris")
    with atheris.instrument_imports(include=["nlrl", "tomllib", "json"], enable_loader_override=False):
        from nlrl.testing.fuzz import targets

        target = targets()[name]
        target.warm()
    with tempfile.TemporaryDirectory(prefix="nlrl-corpus-") as corpus:
        for number, seed in enumerate(target.seeds):
            (Path(corpus) / f"{number}").write_bytes(seed)
        atheris.Setup([sys.argv[0], *flags, corpus], target.check)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
