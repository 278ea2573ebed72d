"""Errors that a person can act on.

Every message says what is wrong, where (file, table, column, id), which value was seen, and what to do.
The command line prints it as one line and exits with 1; the library raises it.
"""


class WellhouseError(Exception):
    """Something the caller can put right; the message says how."""


class LakeError(WellhouseError):
    """The lake cannot be opened, made or written."""


class LakeUnavailableError(LakeError):
    """What the work needs is not there at the moment, a database or S3: nothing is wrong with the plates."""


class ScreenError(WellhouseError):
    """The description of a screen (manifest, layout, annotations) contradicts itself or the lake."""


class PlaceError(WellhouseError):
    """A file or folder, on this machine or on S3, cannot be read."""


class ImageError(WellhouseError):
    """One image cannot be used; the rest of the plate goes on without it."""


class ProfileError(WellhouseError):
    """A table of profiles cannot be taken in."""


class ExportError(WellhouseError):
    """Profiles cannot be written to a file."""


class RecipeError(WellhouseError):
    """A correction cannot be fitted or applied."""


class SearchError(WellhouseError):
    """A similarity search cannot be answered."""


class EvaluationError(WellhouseError):
    """A metric cannot be computed on these rows."""


class TrainingError(WellhouseError):
    """A network cannot be trained on these cells, or a model's folder cannot be used."""


class QualityError(WellhouseError):
    """A limit of quality cannot be what it is set to."""


class UnknownNameError(WellhouseError):
    """A name that is in no list; the message offers the nearest one and the whole list."""
