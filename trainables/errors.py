"""Errors that a user can mend; every command prints them as one line a problem and exits with 2."""


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
