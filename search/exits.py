"""How a command ends: 0 done, 1 failed while running, 2 bad input, 130 interrupted; always one line a problem."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from search.tracking.credentials import masked, retype
from trainables.errors import InputError


class Parser(argparse.ArgumentParser):
    """Reads a command's flags; what is wrong with them is one line too, without all that might have been given."""

    def parse_args(self, args=None, namespace=None):
        """As argparse has it; a command that was typed with secrets begins anew without them."""
        found = super().parse_args(args, namespace)
        try:
            if args is None:
                retype()
        except InputError as error:
            self.exit(2, f"error: {masked(str(error))}\n")
        return found

    def error(self, message: str) -> NoReturn:
        """Ends the command."""
        self.exit(2, f"error: {masked(' '.join(message.split()))} ({self.prog} --help tells all flags)\n")


def exit_code(command: Callable[[], int]) -> int:
    """Runs a command; errors become lines on stderr and an exit code, an unexpected one's traceback a file."""
    try:
        return command()
    except InputError as error:
        for problem in error.problems:
            print(f"error: {masked(' '.join(problem.split()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        import tempfile
        import traceback

        with tempfile.NamedTemporaryFile("w", prefix="ofakd-search-", suffix=".log", delete=False) as file:
            file.write(masked(traceback.format_exc()))
        problem = masked(" ".join(str(error).split()))
        print(f"error: {type(error).__name__}: {problem}; see {file.name}", file=sys.stderr)
        return 1
