"""The one exception for mistakes that the person at the keyboard can mend, and a kind of it that ends all writing."""


class UserError(Exception):
    """A mistake in files, settings or surroundings; the message names the culprit, what is wrong and what to do.

    The entry scripts print the message without a traceback and leave with exit code 2.
    """


class StorageError(UserError):
    """Nothing more can be written: no space, or the disk is read-only. Going on with other files would be in vain."""
