"""Arguments of the small subcommands, which need no page of options."""

import argparse
from typing import NoReturn

from typing_extensions import override

from mixsd_lightning.errors import UserError


class OneLineArguments(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line instead of a page, and takes no abbreviations for options."""

    def __init__(self, subcommand: str, description: str | None = None) -> None:
        """
        Args:
            subcommand: What stands after ``python -m mixsd_lightning``.
            description: What it does, for ``--help``.
        """
        super().__init__(prog=f"python -m mixsd_lightning {subcommand}", description=description, allow_abbrev=False)

    @override
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help shows what is accepted.")
