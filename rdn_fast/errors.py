"""The two ways a command ends badly. Everything else is a bug and keeps its traceback."""


class UserError(Exception):
    """A mistake the user can mend: one line naming the file or flag and the remedy; exit code 2."""


class TrainingError(Exception):
    """A run that cannot go on (diverged, disk full, out of memory): one line; exit code 1, the last checkpoint stays whole."""
