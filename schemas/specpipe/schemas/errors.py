"""The tree of errors; each is also the builtin error that it resembles.

    SpecpipeError                         exit code 1
    ├── ConfigError (ValueError)          2   wrong usage or configuration
    │   └── IdentityError                 2   the output belongs to other inputs, target or settings
    ├── InputError (ValueError)           3   input data that is refused
    ├── IntegrityError (ValueError)       4   a damaged, missing or foreign object
    │   └── ValidationError               4   an artifact or a dump that fails its own proof
    ├── UnfinishedError (RuntimeError)    5   stopped early; run again to continue
    │   └── EngineLostError               5   an engine's process died
    ├── StoreError (OSError)              6   the store, the disk or the model hub failed
    └── DivergedError (ArithmeticError)   6   training produced a non-finite loss

The text of an error says what is wrong, where (file, line, sample, shard) and what to do next.
"""

from typing import ClassVar


class SpecpipeError(Exception):
    """Base of every error that specpipe raises on purpose; the CLI prints it as one line."""

    exit_code: ClassVar[int] = 1
    already_reported: bool = False
    """True if another process of the same run prints this error."""

    @property
    def kind(self) -> str:
        """Name of the error in the output of --json."""
        return type(self).__name__


class ConfigError(SpecpipeError, ValueError):
    """Wrong usage or configuration."""

    exit_code = 2


class IdentityError(ConfigError):
    """The output already belongs to other inputs, another target or other settings."""


class InputError(SpecpipeError, ValueError):
    """Input data that is refused."""

    exit_code = 3


class IntegrityError(SpecpipeError, ValueError):
    """An object that is damaged, missing, or belongs to something else."""

    exit_code = 4


class ValidationError(IntegrityError):
    """A dump or an artifact that fails its own proof."""


class UnfinishedError(SpecpipeError, RuntimeError):
    """Stopped early or not finished yet: run the same command again to continue."""

    exit_code = 5


class EngineLostError(UnfinishedError):
    """A process of the engine that runs the target died."""


class StoreError(SpecpipeError, OSError):
    """The store or the disk failed: retry later, or repair it."""

    exit_code = 6


class DivergedError(SpecpipeError, ArithmeticError):
    """Training produced a loss, a gradient or an evaluation that is not finite."""

    exit_code = 6
