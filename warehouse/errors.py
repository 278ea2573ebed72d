"""Errors that a person can act on.

Every message says what is wrong, where (file, table, column, id), which value was seen, and what to do.
The command line prints it as one line and exits with 1; the library raises it.
"""


class WellhouseError(Exception):
    """Something the caller can put right; the message says how."""


class LakeError(WellhouseError):
    """The lake cannot be opened, made or written."""


class ScreenError(WellhouseError):
    """The description of a screen (manifest, layout, annotations) contradicts itself or the lake."""


class ImageError(WellhouseError):
    """One image cannot be used; the rest of the plate goes on without it."""


class ProfileError(WellhouseError):
    """A table of profiles cannot be taken in."""


class RecipeError(WellhouseError):
    """A correction cannot be fitted or applied."""


class SearchError(WellhouseError):
    """A similarity search cannot be answered."""


class EvaluationError(WellhouseError):
    """A metric cannot be computed on these rows."""


class UnknownNameError(WellhouseError):
    """A name that is in no list; the message offers the nearest one and the whole list."""
