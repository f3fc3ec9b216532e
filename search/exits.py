"""How a command ends: 0 done, 1 failed while running, 2 bad input, 130 interrupted; always one line a problem."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from trainables.errors import InputError


class Parser(argparse.ArgumentParser):
    """Reads a command's flags; what is wrong with them is one line too, without all that might have been given."""

    def error(self, message: str) -> NoReturn:
        """Ends the command."""
        self.exit(2, f"error: {' '.join(message.split())} ({self.prog} --help tells all flags)\n")


def exit_code(command: Callable[[], int]) -> int:
    """Runs a command; errors become lines on stderr and an exit code, an unexpected one's traceback a file."""
    try:
        return command()
    except InputError as error:
        for problem in error.problems:
            print(f"error: {' '.join(problem.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        import tempfile
        import traceback

        with tempfile.NamedTemporaryFile("w", prefix="ofakd-search-", suffix=".log", delete=False) as file:
            traceback.print_exc(file=file)
        print(f"error: {type(error).__name__}: {' '.join(str(error).split())}; see {file.name}", file=sys.stderr)
        return 1
