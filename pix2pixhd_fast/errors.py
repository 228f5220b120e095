"""The one exception for bad input."""


class InputError(ValueError):
    """Bad input from a user: one sentence that names it, says what it was and what it must be.

    The command line prints the sentence and exits with status 2, without a traceback.
    """
