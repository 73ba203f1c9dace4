"""The one exception for mistakes that the person at the keyboard can mend."""


class UserError(Exception):
    """A mistake in files, settings or surroundings; the message names the culprit, what is wrong and what to do.

    The entry scripts print the message without a traceback and leave with exit code 2.
    """
