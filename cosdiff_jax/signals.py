"""Ctrl-C and SIGTERM end a run where it can be gone on with."""

import os
import signal

import jax
import numpy as np
from jax.experimental import multihost_utils

_BEFORE = b"\nstopped before the first step; data that is ready stays, the same command goes on\n"


class Stop:
    """Turns SIGINT and SIGTERM into an answer, given between two steps and two portions of a look.

    Until the first of them there is nothing to save: while ``preparing`` a signal leaves at once.
    """

    def __init__(self):
        self.asked, self.agreed, self.preparing = False, False, True
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def heard(self, *, together: bool = True) -> bool:
        """Whether to stop now: on several hosts all of them or none.

        A host that left alone would leave the others waiting in a step for ever. They ask one
        another where ``together``, at the same steps on every host; asking waits for the step that
        runs, so the loop does it where it waits anyway.
        """
        if jax.process_count() == 1:
            return self.asked
        if together:
            asked = multihost_utils.process_allgather(np.asarray(self.asked))
            self.agreed = bool(np.any(asked))
        return self.agreed

    def _ask(self, number: int, frame: object) -> None:
        if self.asked and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.asked = True
        # Not print: the signal may have come within one.
        if self.preparing:
            os.write(2, _BEFORE)
            # Not sys.exit: raised within a callback of the garbage collector it is ignored.
            os._exit(0)
        os.write(2, b"\nstopping, and saving (Ctrl-C again leaves at once)\n")
