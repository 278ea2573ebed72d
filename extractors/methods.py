"""What can be extracted with, and what of it can be set: for people who choose a method."""

import inspect
import json
import re
import sys
from dataclasses import fields

from extractors import registry
from extractors.registry import Entry
from extractors.training.settings import settings_of


def listed() -> list[dict[str, object]]:
    """List every extractor: name, whether it is trained, the finest level it writes, its paper."""
    return [
        {"method": each.name, "trained": each.trains is not None, "level": each.level, "paper": each.paper}
        for each in registry.ALL
    ]


def settings_listed(name: str) -> list[dict[str, object]]:
    """List the settings of one method: its default, that of the small preset where it is another, what it means.

    Args:
        name: of an extractor; of a trained one the settings of its training are listed.

    Raises:
        UnknownNameError: no extractor has this name.
    """
    entry = registry.entry(name)
    if entry.trains is None:
        return _of_constructor(entry)
    paper, small = settings_of(name), settings_of(name, "small")
    return [
        {
            "setting": each.name,
            "default": _text(getattr(paper, each.name)),
            "small": ""
            if getattr(paper, each.name) == getattr(small, each.name)
            else _text(getattr(small, each.name)),
            "help": each.metadata["help"]
            + (f" One of {', '.join(each.metadata['choices'])}." if each.metadata["choices"] else ""),
        }
        for each in fields(paper)
    ]


def _of_constructor(entry: Entry) -> list[dict[str, object]]:
    """List the keyword arguments of an extractor's class, or of the dataclass of settings beside it."""
    made = registry.loaded(entry.target)
    settings = getattr(sys.modules[made.__module__], "Settings", None)
    if settings is not None:
        defaults = {each.name: each.default for each in fields(settings)}
        help_of = _arguments(settings)
    else:
        parameters = inspect.signature(made).parameters.values()
        defaults = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
        help_of = {
            name: text for each in reversed(made.__mro__[:-1]) for name, text in _arguments(each).items()
        }
    return [
        {
            "setting": name,
            "default": _text(default),
            "small": _text(entry.small[name]) if name in entry.small else "",
            "help": help_of.get(name, ""),
        }
        for name, default in defaults.items()
    ]


def _arguments(made: type) -> dict[str, str]:
    """Read what a docstring says of each argument."""
    _, _, part = (inspect.getdoc(made) or "").partition("\nArgs:\n")
    part = re.split(r"\n\S", part)[0]
    found = re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", part, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _text(value: object) -> str:
    """Write a value as it is typed after --set."""
    return value if isinstance(value, str) else json.dumps(value)
