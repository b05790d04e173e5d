"""What can be wrong with a study or its votes: the message names the item, what was expected and the remedy."""

from collections.abc import Iterable

SHOWN = 5  # items that a message names


class StudyError(ValueError):
    """A study that cannot be made or evaluated as it stands."""


class VotesError(ValueError):
    """Votes, or a key, that cannot be used."""


def named(items: Iterable[object]) -> str:
    """The first few items for a message, and how many more there are."""
    found = [str(item) for item in items]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more
