"""Small-scale replications of the papers' claims.

    python -m nlrl.benchmarks.replications corpus --out FILE           the corpus, from texts on this machine
    python -m nlrl.benchmarks.replications CLAIM... --out FOLDER --corpus FILE
    python -m nlrl.benchmarks.replications report FILE... --docs FOLDER
                                                                       tables and figures of what came out
CLAIM is ngpt, diff, hymba or bimamba. A call goes on where an earlier one into the same folder ended.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nlrl.benchmarks.replications.claims import CLAIMS, Choice
from nlrl.errors import NLRLError


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {"corpus": _corpus, "report": _report}
    try:
        return commands[argv[0]](argv[1:]) if argv and argv[0] in commands else _claims(argv)
    except NLRLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _corpus(argv: Sequence[str]) -> int:
    parser = _parser("corpus")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    from nlrl.benchmarks.replications import corpus

    print(json.dumps(corpus.build(args.out, args.seed), indent=1))
    return 0


def _report(argv: Sequence[str]) -> int:
    parser = _parser("report")
    parser.add_argument("files", type=Path, nargs="+", help="replications_*.json")
    parser.add_argument("--docs", type=Path, required=True, help="folder for CLAIM.md and its figures")
    args = parser.parse_args(argv)
    from nlrl.benchmarks.replications.report import write

    for file in args.files:
        print(write(file, args.docs))
    return 0


def _claims(argv: Sequence[str]) -> int:
    args = _claims_parser().parse_args(argv)
    args.argv = argv
    from nlrl.benchmarks.replications.driver import replicate
    from nlrl.benchmarks.replications.workers import Here, Setup, Workers

    deadline = time.monotonic() + args.max_seconds
    device = _device(args.device)
    jobs = args.jobs if args.jobs is not None else 4 if device.startswith("cuda") else 0
    setup = Setup(args.corpus, device, compiled=not args.no_compile, threads=args.threads)
    with Workers(setup, jobs) if jobs else Here(setup) as workers:  # they start while this process looks at the files
        books = _books(args, device, jobs)
        replicate(books, workers, deadline, lambda line: print(line, flush=True))
    return 1 if any(book.failed for book in books) else 0


def _books(args: argparse.Namespace, device: str, jobs: int):
    from nlrl.benchmarks.replications.corpus import describe
    from nlrl.benchmarks.replications.driver import Book, session_of, sizes

    args.out.mkdir(parents=True, exist_ok=True)
    corpus = describe(args.corpus)
    command = f"python -m nlrl.benchmarks.replications {shlex.join(args.argv)}"
    books = []
    for name in args.claims:
        choice = Choice(name, args.steps, args.quick)
        for context, params in sizes(choice.claim(), corpus["vocabulary"]).items():
            print(f"{name} context {context}: " + ", ".join(f"{arm} {n:,}" for arm, n in params.items()), flush=True)
        books.append(Book(choice, args.out, corpus, session_of(command, device, jobs)))
    return books


def _claims_parser() -> argparse.ArgumentParser:
    parser = _parser("")
    parser.add_argument("claims", nargs="+", metavar="CLAIM", help=", ".join(CLAIMS))
    parser.add_argument("--out", type=Path, required=True, help="folder for replications_CLAIM.json")
    parser.add_argument("--corpus", type=Path, required=True, help="what `corpus` wrote")
    parser.add_argument("--device", default="auto", help="cpu, cuda; auto takes a GPU where there is one")
    parser.add_argument(
        "--jobs", type=int, help="processes side by side on the device; 4; on a CPU 0, which is this one"
    )
    parser.add_argument("--threads", type=int, default=1, help="of a CPU, for each job")
    parser.add_argument("--steps", type=int, help="of every run, in place of the claim's number")
    parser.add_argument("--quick", action="store_true", help="a trial: one context, two rates, one seed, few steps")
    parser.add_argument("--max-seconds", type=float, default=float("inf"), help="start nothing after this time")
    parser.add_argument("--no-compile", action="store_true", help="do not time compiled steps")
    return parser


def _parser(command: str) -> argparse.ArgumentParser:
    name = f"python -m nlrl.benchmarks.replications {command}".strip()
    return argparse.ArgumentParser(name, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)


def _device(wanted: str) -> str:
    import torch

    return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
