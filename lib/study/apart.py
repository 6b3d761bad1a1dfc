"""A call in a process of its own: its memory is its own, and it can be killed when time is up."""

from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from study.hardware import find_device


def call_apart(function: Callable, *args: Any, seconds: float, preload: str) -> Any:
    """Call a function in a fresh process, which without a GPU does not import everything anew.

    Args:
        function: of a module; what it is given and returns can be pickled.
        args: its arguments.
        seconds: that it may take.
        preload: the module whose imports all such processes share.

    Returns:
        What it returns.

    Raises:
        TimeoutError: it takes longer, and was ended.
        ChildProcessError: it raised something, or was killed.
    """
    # What has looked for a GPU, as importing bitsandbytes does, cannot fork processes that use it.
    context = get_context("spawn" if find_device() == "cuda" else "forkserver")
    context.set_forkserver_preload([preload])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, args))
    process.start()
    sender.close()
    try:
        if not receiver.poll(max(0, seconds)):
            raise TimeoutError(f"it did not end in the {seconds:.0f} seconds that were left")
        is_well, value = receiver.recv()
        process.join(10)
    except EOFError:
        process.join()
        raise ChildProcessError(f"its process ended with status {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if not is_well:
        raise ChildProcessError(value)
    return value


def _call(sender: Connection, function: Callable, args: tuple) -> None:
    try:
        sender.send((True, function(*args)))
    except Exception as error:
        sender.send((False, f"{type(error).__name__}: {error}"))
