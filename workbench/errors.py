"""What the workbench raises.  Every message says what was found, why it matters and what to do instead."""

import os
import sys
import warnings


class WorkbenchError(ValueError):
    """Base of every error that the workbench raises on purpose."""


class Refused(WorkbenchError):
    """The model's shape is not understood or not proved, so nothing that is read from it could be trusted."""


class InputError(WorkbenchError):
    """A prompt, a position, a target or a site that cannot be read."""


class StateError(WorkbenchError):
    """The model produced states that mean nothing: NaN or infinity, with the layer and the position."""


class ReadingError(WorkbenchError):
    """A file that is not a reading, is damaged, or cannot be written."""


class PluginError(WorkbenchError):
    """A plug-in that cannot be imported, or a name that two packages take."""


def missing(package: str, needed_for: str, extra: str) -> ImportError:
    """The error for an optional package that is not installed."""
    return ImportError(
        f"{needed_for} needs the package {package!r}, which is not installed. "
        f'Install it with: pip install "latent-workbench[{extra}]"'
    )


def warn(text: str) -> None:
    """A warning that points to the line outside this package which asked for what is warned of."""
    level, frame, here = 1, sys._getframe(), os.path.dirname(__file__)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(here):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)
