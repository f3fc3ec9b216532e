"""How a command ends: 0 done, 1 failed while running, 2 bad input, 130 interrupted; always one line a problem."""

import sys
from collections.abc import Callable

from trainables.errors import InputError


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
