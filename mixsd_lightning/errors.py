"""What reaches a user as a single line instead of a traceback."""


class UserError(ValueError):
    """Something the user gave is wrong and the user can mend it.

    The message names what is wrong, where (flag, key, file and line) and what to do. The command line prints it on
    one line and exits with status 2; library code sees an ordinary ``ValueError``.
    """


def require(flag: str, value: object, is_right: bool, requirement: str) -> None:
    """Refuse a setting that is out of range.

    >>> require("model.top_p", 1.5, 0 < 1.5 <= 1, "above 0 and at most 1")
    Traceback (most recent call last):
    mixsd_lightning.errors.UserError: --model.top_p must be above 0 and at most 1, got 1.5.

    Raises:
        UserError: unless ``is_right``.
    """
    if not is_right:
        raise UserError(f"--{flag} must be {requirement}, got {value}.")


def printable(text: str) -> str:
    """A text from outside on one line, without characters that cannot be shown."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
