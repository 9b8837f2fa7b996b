"""The one error a user is meant to read, and numbers in a sentence. Imports nothing."""


class UserError(Exception):
    """Bad input or a wrong setting: says what (a file or a field), why, and what to do.

    `main` prints it as one line and exits with status 2; the traceback is shown only with --debug.
    """

    def __init__(self, what, reason: str, remedy: str):
        super().__init__(f"{what}: {reason}. {remedy}")
        self.what, self.reason, self.remedy = str(what), reason, remedy

    def __reduce__(self):  # so that it crosses from a worker process
        return type(self), (self.what, self.reason, self.remedy)


def of_system(error: UserError | OSError, folder) -> UserError:
    """What the system refused a command that writes into `folder`, by name; a UserError as it is."""
    if isinstance(error, UserError):
        return error
    what = error.filename2 or error.filename or folder
    remedy = "Mend the disk (space, permissions); the same command goes on from there"
    return UserError(what, error.strerror or str(error), remedy)


def rounded(value: float, digits: int = 3) -> str:
    """A number in a sentence: 1250, where the format "g" alone would write 1.25e+03."""
    return f"{float(f'{value:.{digits}g}'):g}"
