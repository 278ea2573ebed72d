"""Looking a name up in a list, and saying what was meant when it is not there."""

from collections.abc import Iterable
from difflib import get_close_matches

from warehouse.errors import UnknownNameError


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, or an empty string."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    near = get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return f" Did you mean {by_folded[near[0]]!r}?" if near else ""


def split_outside(text: str, mark: str) -> list[str]:
    """Split at each mark that stands outside of parentheses: one within belongs to what is called there."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == mark and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def unknown(name: str, what: str, known: Iterable[str], shown: int = 20) -> UnknownNameError:
    """Build the error for an unknown name of some kind: the nearest known one, the list (cut at `shown`)."""
    names = sorted(known)
    listed = ", ".join(names[:shown]) + (f", … ({len(names)} in all)" if len(names) > shown else "")
    hint = suggestion(name, names)
    return UnknownNameError(f"unknown {what} {name!r}.{hint} Known: {listed or 'none yet'}.")
