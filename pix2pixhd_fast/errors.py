"""The exceptions of this package."""


class InputError(ValueError):
    """Bad input from a user: one sentence that names it, says what it was and what it must be.

    The command line prints the sentence and exits with status 2, without a traceback.
    """


class NotFiniteError(ArithmeticError):
    """A training whose losses became infinite or NaN: one sentence that says where and what to do.

    The command line prints the sentence and exits with status 1.
    """
