"""How many files a process may have open and how many of them are shards, and sentences for what cannot be opened."""

import errno
import resource

# Shards of one data set that a process holds open. More would save little: to open one takes less than to decode one
# sample of it, and its index is in memory, some 400 kB for a shard of 256 MiB.
MAX_OPEN = 1024
_MIN_ADVICE = 4096  # files
_SHARE = 4  # a process may read several data sets, and needs other files


def max_open() -> int:
    """Shards that one data set may hold open in this process: a quarter of the files that it may have open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_OPEN if limit == resource.RLIM_INFINITY else max(1, min(MAX_OPEN, limit // _SHARE))


def allow_open_files() -> None:
    """Raise the limit of open files to what the system grants, if fewer shards could be open than are worth it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = _SHARE * MAX_OPEN
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (enough if hard == resource.RLIM_INFINITY else min(enough, hard), hard)
        )


def is_exhausted(error: BaseException) -> bool:
    """Whether too many files are open, in this process or in the system."""
    return isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}


def explain_reading(error: OSError) -> str:
    """Sentence for an error of opening or reading a local file: what it is, and what to do."""
    if is_exhausted(error):
        return explain_exhausted(error)
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"{error.strerror}; let this user read it and start again"
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return f"{error.strerror}; bring it back and start again"
    return f"{error.strerror or error}; see whether its disk or network folder can be read, and start again"


def explain_exhausted(error: OSError) -> str:
    """Sentence for an error of which is_exhausted is true: how many are open, the limit, what to type."""
    if error.errno == errno.ENFILE:
        return "the whole system has as many files open as it may; end other programs, or raise `sysctl fs.file-max`"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    more = max(_MIN_ADVICE, 2 * soft)
    text = f"this process has all of its {soft} files open, and may have no more; "
    if hard == resource.RLIM_INFINITY or more <= hard:
        return f"{text}type `ulimit -n {more}` and start again"
    return f"{text}its hard limit is {hard}: let an administrator raise it, type `ulimit -n {more}`, and start again"
