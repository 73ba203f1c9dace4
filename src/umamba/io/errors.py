"""The exception for mistakes that the user can correct, and its subclass for a disk that cannot be written."""


class UserError(Exception):
    """A mistake in a file, a setting or the environment that the user can correct.

    The message names the file or key, what is wrong and what to do. The command line prints it without a traceback
    and ends with exit code 2.
    """


class StorageError(UserError):
    """The disk cannot be written, because it is full or read-only; trying other files would fail too."""
