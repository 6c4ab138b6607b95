"""Where the course of a training can be watched, by programs that the user has installed.

They write below ``.work/logs`` of the store with writers of their own, past
:mod:`featurestore.format.durable`: the one exception to the rule that only that writes into a
store. Events are appended while a training runs, no reader of the store looks at them, and the
worst that a power cut takes is the end of a curve. ``tests/test_writes.py`` watches that it stays
the only one.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from featurestore.errors import UsageError
from featurestore.format.gate import inside
from sae.training.loop import Progress

LOGS = ".work/logs"
"""below a store's root"""


@contextlib.contextmanager
def open_log(kind: str | None, root: Path) -> Iterator[Callable[[Progress], object]]:
    """Yield what hears of every report: nothing, TensorBoard (files below ``.work/logs`` of the
    store at ``root``), or Weights & Biases.

    Raises:
        UsageError: the program is not installed.
        DamageError: ``.work`` or ``.work/logs`` is a symbolic link.
    """
    if kind is None:
        yield lambda progress: None
        return
    directory = inside(root, LOGS)
    try:
        if kind == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter
        else:
            import wandb
    except ImportError as error:
        raise UsageError(f"--log {kind}: it is not installed: pip install {kind}.") from error
    if kind == "tensorboard":
        with contextlib.closing(SummaryWriter(str(directory))) as writer:

            def report(progress: Progress) -> None:
                for key, value in _values(progress).items():
                    writer.add_scalar(f"{progress.name}/{key}", value, progress.step)

            yield report
    else:
        with wandb.init(project="featurestore", dir=str(directory)) as run:
            yield lambda p: run.log({f"{p.name}/{k}": v for k, v in _values(p).items()})


def _values(progress: Progress) -> dict[str, float]:
    return {"fvu": progress.fvu, "l0": progress.l0, "n_dead": progress.n_dead}
