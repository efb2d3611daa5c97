"""A config's fields as options of the command line, with its values as their defaults."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from typing import Annotated

import tyro
from pydantic import BaseModel, ValidationError

from nlrl.errors import NLRLError
from nlrl.orchestration.config import RunConfig, complaints, validated

SHORT = {"--log-json": "--watch.log-json", "--metrics-port": "--watch.metrics-port"}
"""Options that people know by other programs."""


def overridden(default: RunConfig, arguments: Sequence[str]) -> RunConfig:
    """`default` with the fields that the arguments name changed; `--help` prints all of them and exits.

    Raises:
        NLRLError: a value that a field cannot have, as in a file.
        SystemExit: of `--help`, and of options that do not exist or cannot be read, which are then explained.
    """
    arguments = [_in_full(argument) for argument in arguments]
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            chosen = tyro.cli(
                Annotated[RunConfig, tyro.conf.arg(name="")],
                prog="nlrl run CONFIG",
                description="Language policy iteration. CONFIG is a TOML file; every field can be overridden.",
                default=default,
                args=list(arguments),
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        error = _cause(stop)
        if error is not None:
            model, within = _section(error.title, arguments)
            raise NLRLError(f"command line: {complaints(model, error, within)}") from None
        sys.stderr.write(said.getvalue())
        raise
    return validated(RunConfig, chosen.model_dump(), "command line")


def _in_full(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return f"{SHORT.get(name, name)}{equals}{value}"


def _cause(stop: BaseException) -> ValidationError | None:
    """The complaint of a section behind tyro's own message, which names neither the field's section nor the option."""
    error: BaseException | None = stop
    while error is not None and not isinstance(error, ValidationError):
        error = error.__context__
    return error


def _sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    """The sections of a config, however deep, with their dotted names."""
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield kind, path + name
                yield from _sections(kind, f"{path}{name}.")


def _section(title: str, arguments: Sequence[str]) -> tuple[type[BaseModel], str]:
    """The section of this class that the arguments change: critic and actor, model and teacher share theirs."""
    found: list[tuple[type[BaseModel], str]] = [(RunConfig, "")] if title == RunConfig.__name__ else []
    found += [(kind, name) for kind, name in _sections(RunConfig) if kind.__name__ == title]
    given = [each for each in found if any(argument.startswith(f"--{each[1]}.") for argument in arguments)]
    return (given or found or [(RunConfig, "")])[0]
