"""The one error that people are meant to read."""


class NLRLError(Exception):
    """Something the user can put right: the message names the field or file and says what would be right.

    The command line prints the message alone, without a traceback, and exits with code 2.
    """


class GameError(NLRLError, ValueError):
    """A game that cannot be: no such game or parameter, a size out of range, an unknown layout."""
