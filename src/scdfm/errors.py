"""One small tree of errors: every message names the label, what was expected, what was found, the remedy."""


class ScdfmError(Exception):
    """Anything scdfm tells its user. The command line prints it as one line and exits with code 2."""

    exit_code = 2
    """What the command line leaves with."""

    def __init__(self, message: str = "") -> None:
        # Labels and library texts may hold line breaks; the message stays one line.
        super().__init__(" ".join(message.split()))


class DataError(ScdfmError, ValueError):
    """A file, table, column, label or value that cannot be used as it is."""


class ConditionError(DataError):
    """A condition or target that is unknown, malformed or asked for in vain."""


class ConfigError(ScdfmError, ValueError):
    """An option that does not exist or has a value that cannot be."""


class RunError(ScdfmError):
    """A run folder that is incomplete, of another version, or does not fit what is asked of it."""


class TrainingError(ScdfmError, RuntimeError):
    """A fit that cannot go on."""


class StorageError(ScdfmError, OSError):
    """A file that the system cannot read or write: a broken disk, a right that is lacking; what stood there stays."""


class DiskFullError(StorageError):
    """A file for which the disk has no room; what stood under its name stays."""


RESUMABLE = 75
"""Exit code EX_TEMPFAIL: schedulers read it as `try again`."""


class InterruptedFitError(TrainingError):
    """A fit stopped from outside (Ctrl-C, SIGTERM), which `resume` continues."""

    exit_code = RESUMABLE
