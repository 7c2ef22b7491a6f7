"""The onnxruntime-training worker: a process that reads one job on standard input and says events.

Run as `python -m tinytl_edge.runtime.workers.ort_worker`. A job is a JSON object with `command` (train, evaluate or
predict) and what `runtime/train.py` puts beside it. Imports numpy and onnxruntime-training's extension
module, never torch or onnx.
"""

from __future__ import annotations

import json
import math
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinytl_edge.runtime.errors import DivergedError, InterruptedTrainingError, TinyTLError, WorkerError
from tinytl_edge.runtime.files.adapter import FILE as ADAPTER
from tinytl_edge.runtime.files.adapter import START, Adapter, open_adapter, write_adapter
from tinytl_edge.runtime.files.bundle import Bundle, open_bundle
from tinytl_edge.runtime.files.run import CHECKPOINTS
from tinytl_edge.runtime.images.batches import Batches
from tinytl_edge.runtime.images.dataset import MULTI, open_dataset
from tinytl_edge.runtime.learning.discriminant import fit_discriminant
from tinytl_edge.runtime.memory import peak_rss
from tinytl_edge.runtime.options import LOG_EVERY, TrainOptions, schedule

from .events import emit
from .measuring import evaluated, measure, probabilities, right
from .ort_session import Array, OrtSession, out_of_memory, reason

_HOPELESS = 10  # times the loss of guessing: an adapter with a loss above that is not kept


def main() -> int:
    """Do the job on standard input; the exit code is the design's."""
    try:
        job = json.loads(sys.stdin.read())
        stop = _StopRequest() if job["command"] == "train" else None
        bundle = open_bundle(job["bundle"])
        if stop is not None:
            _train(job, bundle, stop)
        elif job["command"] == "evaluate":
            _evaluate(job, bundle)
        else:
            _predict(job, bundle)
    except TinyTLError as error:
        return _fail(error)
    except BrokenPipeError:
        return WorkerError.exit_code
    except Exception as error:  # the extension's own kinds: no traceback for the person at the board
        if out_of_memory(error):
            return _fail(WorkerError("There is not enough memory: use a smaller batch or resolution."))
        return _fail(WorkerError(f"The onnxruntime-training worker failed: {reason(error)}."))
    return 0


def _fail(error: TinyTLError) -> int:
    emit("error", message=str(error), exit_code=error.exit_code, peak_rss_bytes=peak_rss())
    return error.exit_code


class _StopRequest:
    """Remembers SIGINT and SIGTERM, so that training ends between two steps."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True


def _train(job: dict[str, Any], bundle: Bundle, stop: _StopRequest) -> None:
    manifest = bundle.manifest
    run = Path(job["run"])
    options = TrainOptions.from_json(job["options"], "the job")
    batches = Batches(manifest, open_dataset(job["train"]))
    validation = Batches(manifest, open_dataset(job["val"])) if job["val"] else None
    classes = list(manifest.classes or batches.dataset.classes)
    checkpoint = run / CHECKPOINTS["onnxruntime-training"]
    resuming = bool(job["resume"]) and checkpoint.is_file()
    session = OrtSession(bundle, options.threads or 1, checkpoint if resuming else None)
    step = int(session.get_property("step", 0))
    # Of the epoch under way: the sum of losses, right guesses, images seen, lowest and highest logit.
    losses, correct, seen, low, high = json.loads(session.get_property("epoch_sums", "[0.0, 0, 0, 0.0, 0.0]"))

    batch_size = options.batch_size or manifest.batch_size
    rates = job["learning_rates"]
    blend = 1.0 if options.blend is None else options.blend
    steps_an_epoch = math.ceil(batches.dataset.count / batch_size)
    total = steps_an_epoch * options.epochs
    emit(
        "start",
        runtime="onnxruntime-training",
        step=step,
        total_steps=total,
        epochs=options.epochs,
        images=batches.dataset.count,
        batch_size=batch_size,
        learning_rates={group: rate for group, rate in rates.items() if group in manifest.trainable.values()},
        threads=options.threads,
        peak_rss_bytes=peak_rss(),
    )

    def trainables() -> dict[str, tuple[tuple[int, ...], bytes]]:
        return {name: (array.shape, array.tobytes()) for name, array in session.trainable.items()}

    def save() -> None:
        if not all(np.isfinite(array).all() for array in session.trainable.values()):
            raise diverged("a parameter is no longer a number")
        write_adapter(run / ADAPTER, bundle, classes, step, trainables(), (low, high))
        session.save(checkpoint, step=step, epoch_sums=json.dumps([losses, correct, seen, low, high]))
        emit("checkpoint", step=step)

    def diverged(how: str) -> DivergedError:
        kept = "the last good adapter stays" if (run / ADAPTER).is_file() else "there is no adapter yet"
        return DivergedError(
            f"Training diverged at step {step}: {how}; {kept}. Lower the learning rates (--lr, --lr-bias, ...)."
        )

    def end_if_asked() -> None:
        if stop.asked and not step and not (run / ADAPTER).is_file():
            raise InterruptedTrainingError("Interrupted before the first step: go on with --resume.")
        if stop.asked:
            raise InterruptedTrainingError(
                f"Interrupted at step {step} of {total}: go on with --resume, or use the adapter as it is."
            )

    durations: list[float] = []
    val_loss = val_accuracy = None
    if options.start == "one-pass" and not resuming:
        begin = time.perf_counter()
        losses, correct, seen, low, high, found = _fit_in_one_pass(session, batches, options, end_if_asked)
        save()
        if validation is not None:
            val_loss, val_accuracy = _measure(session, validation, batch_size, end_if_asked)
        emit(
            "one_pass",
            images=batches.dataset.count,
            **found,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            ms=1e3 * (time.perf_counter() - begin),
            peak_rss_bytes=peak_rss(),
        )
    if not resuming and total and blend < 1:
        write_adapter(run / START, bundle, classes, 0, trainables(), (low, high))
    first_loss = math.nan  # a loss that was high from the start, as with random weights, has not grown
    for epoch in range(step // steps_an_epoch, options.epochs):
        if step % steps_an_epoch == 0:
            losses, correct, seen, low, high = 0.0, 0, 0, 0.0, 0.0
        for batch in batches.training(options, batch_size, epoch, step % steps_an_epoch):
            begin = time.perf_counter()
            share = schedule(step, total)
            by_name = {name: rates[group] * share for name, group in manifest.trainable.items()}
            loss, logits = session.train_step(batch.feeds, by_name)
            durations.append(1e3 * (time.perf_counter() - begin))
            step += 1
            if not math.isfinite(loss):
                raise diverged(f"the loss is {loss}")
            first_loss = loss if math.isnan(first_loss) else first_loss
            losses += loss * len(batch.labels)
            correct += int(right(batch, logits).sum())
            seen += len(batch.labels)
            low, high = min(low, float(logits.min())), max(high, float(logits.max()))
            if step % (options.log_every or LOG_EVERY) == 0 or step in (1, total):
                emit(
                    "step",
                    step=step,
                    epoch=epoch + 1,
                    loss=loss,
                    lr=rates["classifier"] * share,
                    ms=durations[-1],
                )
            if stop.asked:
                save()
                end_if_asked()
        hopeless = _HOPELESS * math.log(2 if manifest.labels == MULTI else manifest.class_count)
        if losses / seen > max(hopeless, first_loss):
            raise diverged(f"the epoch's loss is {losses / seen:.3g}, far above that of guessing")
        save()
        if validation is not None:
            val_loss, val_accuracy = _measure(session, validation, batch_size, end_if_asked)
        emit(
            "epoch",
            epoch=epoch + 1,
            step=step,
            train_loss=losses / seen,
            train_accuracy=correct / (seen * batches.answers),
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            peak_rss_bytes=peak_rss(),
        )
    if not durations and resuming:  # resumed behind the last epoch, of which the end may have been lost
        save()
        if validation is not None:
            val_loss, val_accuracy = _measure(session, validation, batch_size, end_if_asked)
    if total and blend < 1:
        start = open_adapter(run / START, bundle)
        session.load_parameters(
            {name: first + np.float32(blend) * (session.trainable[name] - first) for name, first in _values(start)}
        )
        low, high = min(low, start.logits[0]), max(high, start.logits[1])
        write_adapter(run / ADAPTER, bundle, classes, step, trainables(), (low, high))
        if validation is not None:
            val_loss, val_accuracy = _measure(session, validation, batch_size, end_if_asked)
        emit("blend", share=blend, val_loss=val_loss, val_accuracy=val_accuracy)
    emit(
        "done",
        runtime="onnxruntime-training",
        steps=step,
        step_ms_median=statistics.median(durations) if durations else None,
        train_loss=losses / seen if seen else None,
        val_loss=val_loss,
        val_accuracy=val_accuracy,
        peak_rss_bytes=peak_rss(),
    )


def _fit_in_one_pass(
    session: OrtSession, batches: Batches, options: TrainOptions, between: Callable[[], None]
) -> tuple[float, int, int, float, float, dict[str, Any]]:
    """Fit the classifier to frozen features.

    Returns:
        the sum of losses, right guesses, images, lowest and highest logit with it; and what to say of it.
    """
    head = batches.manifest.head
    assert head is not None
    rows: list[Array] = []
    labels: list[Any] = []
    done = 0
    for batch in batches.evaluation(options.batch_size or batches.manifest.batch_size):
        rows.append(session.features(batch.feeds))
        labels.append(batch.labels)
        done += len(batch.labels)
        emit("fitting", done=done, total=batches.dataset.count)
        between()
    features, targets = np.concatenate(rows), np.concatenate(labels)
    found = fit_discriminant(features, targets, batches.manifest.class_count, options.label_smoothing)
    values = {head.weight: found.weight.astype(np.float32), head.bias: found.bias.astype(np.float32)}
    session.load_parameters({name: value.reshape(session.trainable[name].shape) for name, value in values.items()})
    logits = features @ values[head.weight].T + values[head.bias]
    chances = probabilities(logits, multi_label=False)[np.arange(len(targets)), targets]
    said = {
        "shrinkage": found.shrinkage,
        "left_out_loss": found.loss,
        "left_out_accuracy": found.accuracy,
    }
    right = int((logits.argmax(1) == targets).sum())
    ends = min(0.0, float(logits.min())), max(0.0, float(logits.max()))
    return float(-np.log(chances).sum()), right, len(targets), *ends, said


def _measure(
    session: OrtSession, batches: Batches, batch_size: int, between: Callable[[], None]
) -> tuple[float, float]:
    """Mean loss and accuracy over a dataset; `between` is called after each batch."""
    losses, correct = 0.0, 0
    for batch, loss, logits in evaluated(session, batches, batch_size, _progress):
        losses += loss * len(batch.labels)
        correct += int(right(batch, logits).sum())
        between()
    return losses / batches.dataset.count, correct / (batches.dataset.count * batches.answers)


def _adapted(job: dict[str, Any], bundle: Bundle) -> OrtSession:
    session = OrtSession(bundle, job["threads"], training=False)
    if job["adapter"]:
        session.load_parameters(dict(_values(open_adapter(Path(job["adapter"]), bundle))))
    return session


def _values(adapter: Adapter) -> Iterator[tuple[str, Array]]:
    for name, entry in adapter.tensors.entries.items():
        yield name, np.frombuffer(adapter.tensors.read(name), np.float32).reshape(entry.shape)


def _evaluate(job: dict[str, Any], bundle: Bundle) -> None:
    session = _adapted(job, bundle)
    batches = Batches(bundle.manifest, open_dataset(job["data"]))
    found = measure(session, batches, job["batch_size"], _progress)
    emit("done", runtime="onnxruntime-training", **found, peak_rss_bytes=peak_rss())


def _predict(job: dict[str, Any], bundle: Bundle) -> None:
    session = _adapted(job, bundle)
    batches = Batches(bundle.manifest, open_dataset(job["data"]))
    for _, _, logits in evaluated(session, batches, job["batch_size"], _progress):
        for row in probabilities(logits, bundle.manifest.labels == MULTI).tolist():
            emit("prediction", probabilities=row)
    emit("done", runtime="onnxruntime-training", images=batches.dataset.count, peak_rss_bytes=peak_rss())


def _progress(done: int, total: int) -> None:
    emit("evaluating", done=done, total=total)


if __name__ == "__main__":
    sys.exit(main())
