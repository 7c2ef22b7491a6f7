"""A training as the onnxruntime-training worker does it: what runtime/native/training.cc does, with numpy."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from tinytl_edge.runtime.errors import DivergedError, InterruptedTrainingError
from tinytl_edge.runtime.files.adapter import BEST, JUDGED, JUDGED_START, START, open_adapter
from tinytl_edge.runtime.files.adapter import FILE as ADAPTER
from tinytl_edge.runtime.files.bundle import Bundle
from tinytl_edge.runtime.files.features import FILE as FEATURES
from tinytl_edge.runtime.files.features import write_features
from tinytl_edge.runtime.files.run import CHECKPOINTS, FirstPass
from tinytl_edge.runtime.images.batches import Batches
from tinytl_edge.runtime.images.dataset import MULTI, open_dataset
from tinytl_edge.runtime.learning.kept_features import as_bfloat16
from tinytl_edge.runtime.learning.pulled import MOST_GIVEN_UP
from tinytl_edge.runtime.memory import peak_rss
from tinytl_edge.runtime.options import LOG_EVERY, TrainOptions, schedule
from tinytl_edge.runtime.unknown import find_unknown

from .events import emit
from .measuring import right, surest
from .ort_adapter import values_of, write_trained
from .ort_candidates import Candidate, nearest
from .ort_judge import Judge, Score, judged, said
from .ort_one_pass import classifier_rows, features_of, fit_classifier
from .ort_session import Array, OrtSession
from .ort_standing import Stage, Standing, Sums
from .stopping import StopRequest

_HOPELESS = 10  # times the loss of guessing: an adapter with a loss above that is not kept


class Training:
    """One job."""

    def __init__(self, job: dict[str, Any], bundle: Bundle, stop: StopRequest) -> None:
        self._bundle, self._manifest, self._stop = bundle, bundle.manifest, stop
        self._run = Path(job["run"])
        self._options = TrainOptions.from_json(job["options"], "the job")
        self._batches = Batches(bundle.manifest, open_dataset(job["train"]))
        self._batch_size = self._options.batch_size or bundle.manifest.batch_size
        self._rates: dict[str, float] = job["learning_rates"]
        self._shares: list[float] = job["shares"]
        self._keeps_best: bool = job["keeps_best"]
        self._log_priors = np.array(job["log_priors"], np.float32)  # of each class
        everything = range(self._batches.dataset.count)
        self._held_out: list[int] = job["held_out"]
        self._others = sorted(set(everything) - set(self._held_out))
        self._stages = self._staged(job["course"], everything)
        self._steps = self._stages[-1].end if self._stages else 0
        self._judge: Judge | None = None
        if job["val"]:
            validation = Batches(bundle.manifest, open_dataset(job["val"]))
            self._judge = Judge("val", validation, range(validation.dataset.count))
        elif self._held_out:
            self._judge = Judge("held-out", self._batches, self._held_out)
        self._checkpoint = self._run / CHECKPOINTS["onnxruntime-training"]
        self._resuming = bool(job["resume"]) and self._checkpoint.is_file()
        self._session = OrtSession(bundle, self._options.threads or 1, self._checkpoint if self._resuming else None)
        standing = self._session.get_property("standing", None) if self._resuming else None
        self._at = Standing.from_text(standing) if standing else Standing()
        self._durations: list[float] = []
        self._first_loss = math.nan  # a loss that was high from the start, as with random weights, has not grown
        self._first_pass = FirstPass(**job["first_pass"]) if job["first_pass"] else None
        self._towards: Array | None = None
        if self._first_pass and self._first_pass.pulled:
            session = OrtSession(bundle, self._options.threads or 1) if self._resuming else self._session
            self._towards = classifier_rows(session, bundle.manifest)
        self._old_place: Judge | None = None
        if self._first_pass and self._first_pass.kept_judged:
            kept = Batches(bundle.manifest, open_dataset(self._first_pass.kept_images or ""))
            self._old_place = Judge("kept", kept, self._first_pass.kept_judged)
        self._to_keep: list[int] = job["features_of"]
        self._fits = self._first_pass is not None
        self._knows = self._fits or self._shares[0] < 1

    def run(self) -> None:
        """Train, and say how it goes."""
        at = self._at
        self._say_start()
        if not self._resuming:
            self._begin()
        elif at.step:
            self._end_what_was_under_way()
        while at.step < self._steps:
            stage = self._stage_of(at.step + 1)
            if at.step == stage.first_step and at.step:
                self._begin_anew(stage)
            if at.share == 0:  # training brings nothing
                break
            if stage.ends_epoch(at.step):
                at.sums = Sums()
            self._train_epoch(stage)
            self._end_epoch(stage)
        self._finish()

    def _staged(self, told: list[dict[str, Any]], everything: Sequence[int]) -> list[Stage]:
        stages: list[Stage] = []
        for stage in told:
            images = everything if stage["with_held_out"] else self._others
            epoch, step = (stages[-1].first_epoch + stages[-1].epochs, stages[-1].end) if stages else (0, 0)
            steps_an_epoch = math.ceil(len(images) / self._batch_size)
            stages.append(
                Stage(images, stage["with_held_out"], stage["start"], epoch, stage["epochs"], step, steps_an_epoch)
            )
        return stages

    def _stage_of(self, step: int) -> Stage:
        """The one of a step, counted from 1."""
        return next((stage for stage in self._stages if stage.end >= step), self._stages[-1])

    def _is_judged(self, stage: Stage) -> bool:
        """Does the judge see images that this stage does not learn from?"""
        return self._judge is not None and (self._judge.what == "val" or not stage.with_held_out)

    # Stages --------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        begin = time.perf_counter()
        if self._stages and self._stages[0].start:
            self._load(self._stages[0].start)
        deployed = self._measure(keeps=False) if self._judge and self._towards is not None else None
        self._at.kept_before = self._in_old_place()
        found = self._fit(self._others) if self._fits else {}
        if deployed:
            found["accuracy_before"] = deployed.accuracy
        self._look_back(found)
        if self._judge and self._knows:
            self._at.start = self._at.score = self._measure(keeps=False)
            if self._options.flip is None and self._steps:
                mirrored = self._judge.mirrored(self._session, self._end_if_asked)
                self._at.flips = not mirrored.harms
                if mirrored.harms:
                    emit("warning", message=str(mirrored))
        if self._steps and (self._knows or len(self._stages) > 1):
            self._write(START)
        if not self._fits:
            return
        self._save()
        self._say_one_pass(found, False, self._score, begin)

    def _begin_anew(self, stage: Stage) -> None:
        begin = time.perf_counter()
        del self._session  # with the optimizer's state
        self._session = OrtSession(self._bundle, self._options.threads or 1)
        self._load(stage.start or START)
        if stage.start:
            self._write(START)
        if self._fits:
            found = self._fit(stage.images)
            self._look_back(found)
            self._write(START)
            self._say_one_pass(found, True, None, begin)

    def _end_what_was_under_way(self) -> None:
        """Go on where training stopped behind the last step of an epoch."""
        at, stage = self._at, self._stage_of(self._at.step)
        if at.step != at.ended:
            if stage.ends_epoch(at.step):
                self._end_epoch(stage)
        elif at.step == stage.end and self._is_judged(stage) and at.share is None:
            self._choose()

    def _train_epoch(self, stage: Stage) -> None:
        at, rates = self._at, self._rates
        options = self._options if at.flips else replace(self._options, flip=False)
        epoch, inside = stage.epoch_of(at.step), at.step - stage.first_step
        first = inside % stage.steps_an_epoch
        for batch in self._batches.training(options, self._batch_size, epoch - stage.first_epoch, first, stage.images):
            begin = time.perf_counter()
            share = schedule(at.step - stage.first_step, stage.steps)
            by_name = {name: rates[group] * share for name, group in self._manifest.trainable.items()}
            loss, logits = self._step(batch.feeds, by_name)
            self._durations.append(1e3 * (time.perf_counter() - begin))
            at.step += 1
            if not math.isfinite(loss):
                raise self._diverged(f"the loss is {loss}")
            self._first_loss = loss if math.isnan(self._first_loss) else self._first_loss
            at.sums.losses += loss * len(batch.labels)
            at.sums.correct += int(right(batch, logits).sum())
            at.sums.seen += len(batch.labels)
            at.sums.add_range(float(logits.min()), float(logits.max()))
            if at.step % (options.log_every or LOG_EVERY) == 0 or at.step in (1, self._steps):
                rate, ms = rates["classifier"] * share, self._durations[-1]
                emit("step", step=at.step, epoch=epoch + 1, loss=loss, lr=rate, ms=ms)
            if self._stop.asked:
                self._save()
                self._interrupted()

    def _end_epoch(self, stage: Stage) -> None:
        at = self._at
        loss = at.sums.losses / at.sums.seen
        hopeless = _HOPELESS * math.log(2 if self._manifest.labels == MULTI else self._manifest.class_count)
        if loss > max(hopeless, self._first_loss):
            raise self._diverged(f"the epoch's loss is {loss:.3g}, far above that of guessing")
        epoch, judged = stage.epoch_of(at.step - 1), self._is_judged(stage)
        if judged:
            at.score = self._measure(keeps=True)
            if self._keeps_best and (not at.best_step or at.score.class_loss < at.best.class_loss):
                at.best, at.best_step = at.score, at.step
                self._write(BEST)
        at.ended = at.step
        self._save()
        emit(
            "epoch",
            epoch=epoch + 1,
            step=at.step,
            train_loss=loss,
            train_accuracy=at.sums.correct / (at.sums.seen * self._batches.answers),
            **said(at.score if judged else None),
            peak_rss_bytes=peak_rss(),
        )
        if judged and at.step == stage.end:
            self._choose()

    def _choose(self) -> None:
        """What the judge likes best: some way from the start to what was trained, or an earlier epoch."""
        at, judge = self._at, self._judge
        assert judge is not None
        candidates: list[Candidate] = []
        for share in self._shares:
            self._load(ADAPTER)
            if share < 1:
                self._blend(share)
            logits: list[Array] = []
            score = judge.measure(self._session, _progress, self._end_if_asked, raw=logits)
            at.kept = self._in_old_place()
            if candidates and not self._keeps_old_place(candidates[0].kept):
                break
            losses = judge.losses_at_best_scale(np.array(logits, np.float64))
            candidates.append(Candidate(share, at.kept, score, losses))
        best = min(candidates, key=lambda candidate: candidate.score.class_loss)
        if self._towards is not None:
            best = nearest(candidates, judge.shares())
        at.share, at.score = best.share, best.score
        earlier = self._keeps_best and at.best.class_loss < best.score.class_loss
        if earlier:
            self._load(BEST)
            at.kept = self._in_old_place()
            earlier = self._keeps_old_place(candidates[0].kept)
        if earlier:
            at.share, at.score = 1, at.best
        else:
            at.kept = best.kept
            self._load(ADAPTER)
        self._look_closer()
        self._save()
        last = at.best_step if earlier else at.step
        epoch = self._stage_of(last).epoch_of(last - 1) + 1
        reached = self._judged(self._start, self._score)
        emit("choice", share=at.share, epoch=epoch, kept_accuracy=at.kept, **reached)

    def _in_old_place(self) -> float | None:
        """The accuracy where the classifier comes from, if there are images of it."""
        if self._old_place is None:
            return None
        return self._old_place.measure(self._session, _progress, self._end_if_asked).accuracy

    def _look_back(self, found: dict[str, Any]) -> None:
        """What is given up there is said of the one pass; images left out of it said it before."""
        if self._old_place is not None:
            self._at.kept = self._in_old_place()
            found.update(kept_accuracy_before=self._at.kept_before, kept_accuracy=self._at.kept)

    def _keeps_old_place(self, start: float | None) -> bool:
        """Does it give up little there, or no more than the start does?"""
        at = self._at
        if at.kept is None or at.kept_before is None or start is None:
            return True
        return at.kept >= min(at.kept_before - MOST_GIVEN_UP, start)

    def _keep_old_place(self) -> None:
        """What was learnt from all images may give up more than what the trial had learnt."""
        at = self._at
        if self._old_place is None or not self._steps:
            return
        start, at.kept = at.kept, self._in_old_place()
        for share in reversed(self._shares):
            if not self._keeps_old_place(start) and at.share is not None and share < at.share:
                at.share = share
                self._load(ADAPTER)
                self._blend(share)
                at.kept = self._in_old_place()

    def _look_closer(self) -> None:
        """At what was chosen, as it will be: how sure its answers are.

        Before all images are learnt from, that itself is kept, and where it began: a training that goes on is judged by
        way of them, and reports are written.
        """
        at, judge = self._at, self._judge
        assert judge is not None
        blended = at.share is not None and at.share < 1
        if blended:
            self._blend(at.share or 0)
        sure: list[tuple[float, bool]] = []
        judge.measure(self._session, _progress, self._end_if_asked, sure)
        if self._manifest.labels != MULTI:
            at.unknown = find_unknown(sure, self._manifest.class_count) or at.unknown  # of few, what leaving out told
        if judge.what == "held-out":
            self._write(JUDGED)
            self._load(START)
            self._write(JUDGED_START)
        if blended or judge.what == "held-out":
            self._load(ADAPTER)

    def _try_junk(self) -> None:
        """How many images without anything on them are taken for something."""
        if self._at.unknown is not None:
            found = [float(surest(self._session.evaluate(batch.feeds)[1])[0]) for batch in self._batches.junk()]
            self._at.unknown = self._at.unknown.with_junk(found)

    def _finish(self) -> None:
        at = self._at
        if self._steps and at.share is None:
            at.share = self._shares[-1]
            if at.share < 1:
                epochs = sum(stage.epochs for stage in self._stages)
                emit("choice", share=at.share, epoch=epochs, kept_accuracy=None, **self._judged(None, None))
        if at.share is not None and at.share < 1:
            at.sums.add_range(*self._blend(at.share))
        self._keep_old_place()
        self._try_junk()
        if self._to_keep:
            self._keep_features()
        self._write(ADAPTER)
        emit(
            "done",
            runtime="onnxruntime-training",
            steps=at.step,
            step_ms_median=statistics.median(self._durations) if self._durations else None,
            train_loss=at.sums.losses / at.sums.seen if at.sums.seen else None,
            left_out_accuracy=at.left_out,
            share=at.share,
            **self._judged(self._start, self._score),
            kept_images=len(self._old_place.images) if self._old_place else 0,
            kept_accuracy_before=at.kept_before,
            kept_accuracy=at.kept,
            unknown=at.unknown.as_dict() if at.unknown else None,
            peak_rss_bytes=peak_rss(),
        )

    def _keep_features(self) -> None:
        """Of images, as the classifier reads them now; and those that stood in, where no training changed them."""
        stood_in = (
            None if self._steps or self._first_pass is None else replace(self._first_pass, others=(), kept_learnt=())
        )
        features, labels, _ = self._features(self._to_keep, stood_in, lambda done: None)
        write_features(
            self._run / FEATURES, self._manifest.classes, labels.tolist(), as_bfloat16(features), features.shape[1]
        )

    def _step(self, feeds: dict[str, Array], rates: dict[str, float]) -> tuple[float, Array]:
        """A step in which the priors are added to the logits, by way of the classifier's bias; the logits without."""
        head, priors = self._manifest.head, self._log_priors
        if head is None or not priors.any():
            return self._session.train_step(feeds, rates)
        bias = self._session.trainable[head.bias].reshape(-1)[: len(priors)]
        bias += priors
        loss, logits = self._session.train_step(feeds, rates)
        bias -= priors
        return loss, logits - priors

    # Its parts -----------------------------------------------------------------------------------------------

    def _fit(self, images: Sequence[int]) -> dict[str, Any]:
        """Fit the classifier to frozen features of images; what to say of it."""
        assert self._first_pass is not None

        def say(done: int) -> None:
            emit("fitting", done=done, total=len(images))

        features, labels, stood_in = self._features(images, self._first_pass, say)
        first, smoothing = self._first_pass, self._options.label_smoothing
        fitted = fit_classifier(
            self._session, self._manifest, features, labels, first.known_classes, smoothing, self._towards,
            stood_in if first.others or first.kept_learnt else 0, first.keep,
        )  # fmt: skip
        at = self._at
        at.sums, at.left_out, at.unknown = fitted.sums, fitted.found.accuracy, at.unknown or fitted.unknown
        return {"images": len(labels) - stood_in, "stood_in": stood_in, **fitted.said()}

    def _features(
        self, images: Sequence[int], first: FirstPass | None, say: Callable[[int], None]
    ) -> tuple[Array, NDArray[np.int64], int]:
        def between(done: int) -> None:
            say(done)
            self._end_if_asked()

        return features_of(self._session, self._manifest, self._batches, images, first, self._batch_size, between)

    def _blend(self, share: float) -> tuple[float, float]:
        """Bring the parameters to start + share (parameters - start); the range of the start's logits."""
        start = open_adapter(self._run / START, self._bundle)
        trained = self._session.trainable
        self._session.load_parameters(
            {name: first + np.float32(share) * (trained[name] - first) for name, first in values_of(start)}
        )
        return start.logits

    def _measure(self, keeps: bool) -> Score:
        """Of the parameters as they are, which are kept where it is stopped and `keeps`."""

        def between() -> None:
            if self._stop.asked and keeps:
                self._save()
            self._end_if_asked()

        assert self._judge is not None
        return self._judge.measure(self._session, _progress, between)

    @property
    def _score(self) -> Score | None:
        return self._at.score if self._judge else None

    @property
    def _start(self) -> Score | None:
        return self._at.start if self._judge and self._knows else None

    def _judged(self, start: Score | None, score: Score | None) -> dict[str, Any]:
        return judged(self._judge, self._manifest, start, score)

    def _end_if_asked(self) -> None:
        if self._stop.asked:
            self._interrupted()

    def _interrupted(self) -> NoReturn:
        if not self._at.step:
            raise InterruptedTrainingError("Interrupted before the first step: go on with --resume.")
        raise InterruptedTrainingError(
            f"Interrupted at step {self._at.step} of {self._steps}: go on with --resume, or use the adapter as it is."
        )

    def _diverged(self, how: str) -> DivergedError:
        kept = "the last good adapter stays" if (self._run / ADAPTER).is_file() else "there is no adapter yet"
        where = f"Training diverged at step {self._at.step}"
        return DivergedError(
            f"{where}: {how}; {kept}. Train again with lower learning rates (--lr, --lr-bias, ...), into another --out."
        )

    def _load(self, name: str) -> None:
        self._session.load_parameters(dict(values_of(open_adapter(self._run / name, self._bundle))))

    def _write(self, name: str) -> None:
        write_trained(self._run / name, self._bundle, self._session, self._at)

    def _save(self) -> None:
        if not all(np.isfinite(array).all() for array in self._session.trainable.values()):
            raise self._diverged("a parameter is no longer a number")
        self._write(ADAPTER)
        self._session.save(self._checkpoint, standing=self._at.text())
        emit("checkpoint", step=self._at.step)

    def _say_one_pass(self, found: dict[str, Any], anew: bool, score: Score | None, begin: float) -> None:
        ms = 1e3 * (time.perf_counter() - begin)
        emit("one_pass", anew=anew, **found, **said(score), ms=ms, peak_rss_bytes=peak_rss())

    def _say_start(self) -> None:
        trained = self._manifest.trainable.values()
        emit(
            "start",
            runtime="onnxruntime-training",
            step=self._at.step,
            total_steps=self._steps,
            epochs=sum(stage.epochs for stage in self._stages),
            images=self._batches.dataset.count,
            held_out=len(self._held_out),
            batch_size=self._batch_size,
            learning_rates={group: rate for group, rate in self._rates.items() if group in trained},
            threads=self._options.threads,
            peak_rss_bytes=peak_rss(),
        )


def _progress(done: int, total: int) -> None:
    emit("evaluating", done=done, total=total)
