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


class DiskError(OSError):
    """A disk of this machine does not take what came from the store."""


def of_disk(error: BaseException) -> bool:
    """Whether a disk is full, may only be read, or is broken."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (*UNWRITABLE, BROKEN)
    return tells_of_disk(str(error))


def tells_of_disk(text: str) -> bool:
    """Whether an error that is known by its message alone is one."""
    return WORDS.search(text) is not None
