"""Prompt templates as data: `<game>.<style>.toml`, one table a role with `system` (optional) and `user`.

Styles: `plain` for the bundled models, `instruct` for chat models. A template's fields are filled with `str.format`.
"""

from __future__ import annotations

import string
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from nlrl.backbones.language_model import Message
from nlrl.errors import NLRLError

FIELDS = frozenset(
    {"board", "diagram", "player", "opponent", "legal", "setting", "longest", "scale"}
    | {"action", "samples", "transition", "successor", "candidates", "critique", "state"}
)


class Template(NamedTuple):
    """The system and user text of one role."""

    system: str
    user: str

    def messages(self, **fields: str) -> tuple[Message, ...]:
        """The chat messages with the fields filled in."""
        turns = [Message("system", self.system.format(**fields))] if self.system else []
        return (*turns, Message("user", self.user.format(**fields)))


@cache
def fields_of(template: Template) -> frozenset[str]:
    """The fields that a template has."""
    return frozenset(_named(template.system, template.user))


@cache
def load_templates(game_name: str, style: str, folder: str | None = None) -> dict[str, Template]:
    """All templates of a game in one style; `folder` overrides the package's own (for a user's prompts).

    Raises:
        NLRLError: no such file, a role without `user`, or an unknown field in a template.
    """
    path = Path(folder or Path(__file__).parent) / f"{game_name}.{style}.toml"
    if not path.exists():
        known = ", ".join(sorted(p.name for p in path.parent.glob("*.toml"))) or "none"
        raise NLRLError(f"no prompts for game '{game_name}' in style '{style}' ({path.name}); there are: {known}")
    roles = tomllib.loads(path.read_text())["roles"]
    for name, role in roles.items():
        if "user" not in role:
            raise NLRLError(f"{path.name}: role '{name}' needs a 'user' template")
        _check_fields(path.name, name, (role.get("system", ""), role["user"]))
    return {name: Template(role.get("system", "").strip(), role["user"].strip()) for name, role in roles.items()}


def _check_fields(file: str, role: str, texts: Iterable[str]) -> None:
    for field in _named(*texts):
        if field not in FIELDS:
            raise NLRLError(
                f"{file}: role '{role}' uses unknown field '{{{field}}}'; known: {', '.join(sorted(FIELDS))} "
                "(write {{ and }} for literal braces)"
            )


def _named(*texts: str) -> Iterator[str]:
    return (field for text in texts for _, field, _, _ in string.Formatter().parse(text) if field is not None)
