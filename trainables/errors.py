"""The errors that commands print as plain lines: bad input, which exits with 2, and a failed study, with 1."""


class InputError(ValueError):
    """Bad input: each problem names the field, the value and the fix, in one line.

    Args:
        problems: one line each; a single string is one problem.
    """

    def __init__(self, problems: str | list[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self):
        return type(self), (self.problems,)


class StudyError(RuntimeError):
    """The study itself could not go on; the message is one line."""


def one_line(error: Exception, limit: int = 300) -> str:
    """An exception's kind and message in one line, cut after so many characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:limit]}"
