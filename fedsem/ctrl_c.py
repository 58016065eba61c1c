"""Ctrl-C, remembered.

Python raises KeyboardInterrupt wherever the main thread happens to be. In the middle of an import or of a callback a
library may turn it into an error of its own, and the user who pressed Ctrl-C would be told that something went wrong.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType

EXIT_CODE = 130
"""Of a process that Ctrl-C has ended: 128 + SIGINT, as shells have it."""
_pressed = threading.Event()


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while something was made that can be finished.

    Attributes:
        folder: of the run or the ablation.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


def listen() -> None:
    """Remember Ctrl-C from now on; it still raises KeyboardInterrupt. Where SIGINT is ignored, it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _press)


def interrupts(error: BaseException) -> bool:
    """Whether this error is a Ctrl-C, or came after one."""
    return isinstance(error, KeyboardInterrupt) or _pressed.is_set()


def _press(number: int, frame: FrameType | None) -> None:
    _pressed.set()
    signal.default_int_handler(number, frame)
