"""The host's memory: what XLA frees after a step is kept for the next one."""

import ctypes
import logging
import sys

_log = logging.getLogger(__name__)

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_memory() -> bool:
    """Let malloc keep large freed blocks; returns whether it could be told so.

    On a CPU, XLA takes and frees the same few large buffers in every step. By default glibc hands
    such blocks back to the system, which has to clear their pages again at every step: a tenth to
    a fifth of a step that trains a model on latents, nothing where many small rollouts are drawn.
    To be called before the first computation, for threads that have an arena of their own keep
    it. Elsewhere than under glibc nothing is done.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        _log.debug("this C library has no mallopt")
        return False
    settings = {
        # One heap that grows and is never cut: only the main arena can be kept whole.
        _ARENA_MAX: 1,
        _MMAP_MAX: 0,
        _TRIM_THRESHOLD: -1,  # as unsigned: never
        _TOP_PAD: 2**26,
    }
    return all([mallopt(name, value) for name, value in settings.items()])
