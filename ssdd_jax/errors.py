"""The errors that a user's input can cause."""


class InputError(ValueError):
    """A setting, file or dataset that cannot be used.

    The message is one line: what was given, what was expected, what to do. The command line prints it without a
    traceback and exits with status 2.
    """
