"""`tinytl-edge train` behind its command line: a process that plans, packs, and becomes the native trainer."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from .ending import end_well
from .options import TrainOptions
from .report import JsonReport, ProgressReport, summary
from .train import train_to_the_end
from .training_plan import Asked


def main(told: str) -> None:
    """`told`: what `train_and_report` takes, as JSON."""
    end_well(lambda: train_and_report(**json.loads(told)))


def train_and_report(
    as_json: bool, warning: str | None, options: Mapping[str, Any], become: bool = True, **asked: Any
) -> None:
    """Train, and say how it goes; `asked` are the other fields of `Asked`."""
    report = JsonReport(sys.stdout) if as_json else ProgressReport(sys.stderr)
    with report:
        if warning:
            report({"event": "warning", "message": warning})
        given = Asked(**asked, options=TrainOptions(**options))
        done = train_to_the_end(given, report, become=("json" if as_json else "text") if become else "")
    if not as_json:
        sys.stdout.write(summary(done))
        sys.stdout.flush()
