"""Which errors are the disk's, and so no fault of what was to be written."""

import errno
import os
import re

UNWRITABLE = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS  # no room, or nothing may be written
BROKEN = errno.EIO
# torch and safetensors raise what has no number. These are the words of torch's writer, and then the system's.
WORDS = re.compile(
    "|".join(
        [
            "PytorchStreamWriter failed",
            r"unexpected pos \d+ vs",
            "basic_ios::clear",
            *(re.escape(os.strerror(number)) for number in (*UNWRITABLE, BROKEN)),
        ]
    )
)
PATHS = re.compile(r"""['"<](/[^'">]+)""")


class DiskError(OSError):
    """A disk of this machine does not take what came from the store."""


def of_disk(error: BaseException) -> bool:
    """Whether a disk is full, may only be read, or is broken."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (*UNWRITABLE, BROKEN)
    return WORDS.search(str(error)) is not None


def names_another_place(error: BaseException, folder: str) -> bool:
    """Whether an error of the disk names files, none of which lies in the folder; torch's writer names none."""
    named = PATHS.findall(str(error))
    return bool(named) and not any(path.startswith(f"{folder.rstrip('/')}/") for path in named)
