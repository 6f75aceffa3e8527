"""Every exception of flowmrd, and the finding.

::

    FlowmrdError
    ├── InputError          the user's files are wrong; has source, where, hint
    │   ├── FcsError            ├── ManifestError     ├── TemplateError
    │   ├── CriteriaError       ├── SettingsError     └── ReferenceFileError
    ├── AnalysisError       legal input, untrustworthy computation
    │   ├── PanelMismatchError  ├── CompensationError ├── GatingError
    │   ├── ClusteringError     └── QuantificationError
    ├── ExportError   ReviewError
    └── PluginError         unknown, duplicate or unavailable plugin

A message says what is wrong, where (file, byte or key path), what was expected, what was found, and what to do.
Keyword values of an FCS file that may name a person never enter a message.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How serious a finding is: `info` explains, `warning` asks for a look, `violation` blocks signing."""

    INFO = "info"
    WARNING = "warning"
    VIOLATION = "violation"


@dataclass(frozen=True, slots=True, kw_only=True)
class QcFinding:
    """One observation about an acquisition, readable without the source code.

    `code` is a constant UPPER_SNAKE name, `where` a byte, keyword, channel, population or row.
    """

    level: Level
    code: str
    message: str
    where: str = ""


class FlowmrdError(Exception):
    """Base of every error that flowmrd raises on purpose."""


class InputError(FlowmrdError):
    """A file or document of the user is wrong.

    Parameters
    ----------
    message : what is wrong, with expected and got
    source : file name
    where : byte, key path, or row and column inside the file
    hint : what to do
    """

    def __init__(self, message: str, *, source: str = "", where: str = "", hint: str = "") -> None:
        self.message, self.source, self.where, self.hint = message, source, where, hint
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders in a batch; keyword-only arguments need help.
        return (_rebuild, (type(self), self.message, self.source, self.where, self.hint))

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.source, self.where) if part)
        text = f"{place}: {self.message}" if place else self.message
        return f"{text} ({self.hint})" if self.hint else text


def _rebuild(cls: type[InputError], message: str, source: str, where: str, hint: str) -> InputError:
    return cls(message, source=source, where=where, hint=hint)


class FcsError(InputError):
    """An FCS file cannot be read as what it says it is."""


class ManifestError(InputError):
    """The manifest is not a valid worklist."""


class TemplateError(InputError):
    """A gating template is not valid."""


class CriteriaError(InputError):
    """A response-criteria document is not valid."""


class ReferenceFileError(InputError):
    """A reference of normals is damaged, or belongs to another panel."""


class SettingsError(InputError):
    """A setting or command-line value is not valid."""


class AnalysisError(FlowmrdError):
    """The input is legal, but the computation cannot be trusted."""


class PanelMismatchError(AnalysisError):
    """A tube's markers do not resolve to exactly one channel each."""


class CompensationError(AnalysisError):
    """A spillover matrix cannot be applied."""


class GatingError(AnalysisError):
    """A gate cannot be placed or evaluated."""


class ClusteringError(AnalysisError):
    """A clustering backend failed."""


class QuantificationError(AnalysisError):
    """Counts that cannot become a measurement."""


class ExportError(FlowmrdError):
    """A result cannot be exported."""


class ReviewError(FlowmrdError):
    """A review action is not allowed."""


class PluginError(FlowmrdError):
    """A plugin is unknown, registered twice, or lacks a package."""
