"""The one exception that reaches a user as a single line instead of a traceback."""


class UserError(ValueError):
    """Something the user gave is wrong and the user can mend it.

    The message names what is wrong, where (flag, key, file and line) and what to do. The command line prints it on
    one line and exits with status 2; library code sees an ordinary ``ValueError``.
    """
