"""How the result of an unmodified ServerApp is found: by standing around the public `Strategy.start`.

An app calls `strategy.start(...)` and does with the `Result` what it likes; we need its arrays and metrics. So `start`
of `Strategy`, and of each subclass that defines its own, is wrapped before the app is imported: the outermost call is
a *phase*, what it returns is the run's result (the last phase counts), and what the strategy's `aggregate_train` and
`aggregate_evaluate` give is reported at once as progress. An app without a strategy has its metrics averaged from the
replies (weighted by `num-examples`), and its result is the last arrays that it sent.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

from flwr.serverapp.strategy import Strategy

_WEIGHT = "num-examples"
_ROUNDS_MAX = 100_000

_RESULT_FIELDS = {
    "train": "train_metrics_clientapp",
    "evaluate": "evaluate_metrics_clientapp",
    "server": "evaluate_metrics_serverapp",
}

Row = dict[str, Any]


class Recorder:
    """Collects a run's metrics and final arrays.

    `tell` is called with each progress row, `check` with each strategy before it starts; it may raise.
    """

    def __init__(self, tell: Callable[[Row], None], check: Callable[[Any], None] | None = None) -> None:
        self._check = check
        self.arrays: Any = None
        self.source = "none"
        self._tell = tell
        self._rows: dict[tuple[int, int], Row] = {}
        self._phase = 0
        self._depth = 0
        self._plain_round = 0

    def rows(self) -> list[Row]:
        """One row per round of each phase, in order."""
        return [self._rows[key] for key in sorted(self._rows)]

    def metrics(self, round_number: int, stage: str, record: Any) -> None:
        """Record the aggregated metrics of a stage; the first value told for a stage of a round stays."""
        if record is None or len(self._rows) >= _ROUNDS_MAX or not 0 <= round_number <= _ROUNDS_MAX:
            return
        key = (self._phase, round_number)
        empty: Row = {"phase": self._phase, "round": round_number, "train": None, "evaluate": None, "server": None}
        row = self._rows.setdefault(key, empty)
        if row[stage] is None:
            row[stage] = {str(name): _plain(value) for name, value in record.items()}
            progress = {"phase": self._phase, "round": round_number, "stage": stage, "metrics": row[stage]}
            self._tell({"op": "progress", **progress})

    def replies(self, message_type: str, replies: Iterable[Any]) -> None:
        """Average the metrics of one question's replies, for apps without a strategy."""
        stage = message_type.partition(".")[0]
        if self._depth or stage not in {"train", "evaluate"}:
            return
        self._plain_round += stage == "train"
        totals: dict[str, float] = {}
        weights: dict[str, float] = {}
        for reply in replies:
            if reply.has_error():
                continue
            for record in reply.content.metric_records.values():
                weight = record.get(_WEIGHT, 1)
                for name, value in record.items():
                    if name != _WEIGHT and not isinstance(value, list) and not isinstance(weight, list):
                        totals[name] = totals.get(name, 0.0) + value * weight
                        weights[name] = weights.get(name, 0.0) + weight
        mean = {name: total / weights[name] for name, total in totals.items() if weights[name]}
        self.metrics(max(1, self._plain_round), stage, mean)

    def run_phase(self, start: Callable[..., Any], strategy: Any, arguments: inspect.BoundArguments) -> Any:
        """Run a strategy's `start`; nested calls (a subclass calling its parent) belong to the outermost."""
        if self._depth:
            return start(*arguments.args, **arguments.kwargs)
        if self._check is not None:
            self._check(strategy)
        self._phase += 1
        self._depth += 1
        try:
            with _watched(strategy, self):
                if callable(evaluate := arguments.arguments.get("evaluate_fn")):
                    arguments.arguments["evaluate_fn"] = self._server_stage(evaluate)
                result = start(*arguments.args, **arguments.kwargs)
        finally:
            self._depth -= 1
        arrays = getattr(result, "arrays", None)
        if arrays:
            self.arrays, self.source = arrays, "strategy"
        for stage, name in _RESULT_FIELDS.items():
            for number, record in (getattr(result, name, None) or {}).items():
                self.metrics(number, stage, record)
        return result

    def _server_stage(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(evaluate)
        def watched(round_number: int, arrays: Any) -> Any:
            record = evaluate(round_number, arrays)
            self.metrics(round_number, "server", record)
            return record

        return watched


def install(recorder: Recorder) -> None:
    """Wrap `start` of `Strategy` and of all its subclasses, present and future. Once per process."""
    for cls in [Strategy, *_subclasses(Strategy)]:
        _wrap(cls, recorder)

    def init_subclass(cls: type, /, **arguments: Any) -> None:
        super(Strategy, cls).__init_subclass__(**arguments)
        _wrap(cls, recorder)

    Strategy.__init_subclass__ = classmethod(init_subclass)


def _wrap(cls: type, recorder: Recorder) -> None:
    if "start" not in vars(cls):
        return
    start = vars(cls)["start"]
    signature = inspect.signature(start)

    @functools.wraps(start)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return recorder.run_phase(start, self, signature.bind(self, *args, **kwargs))

    cls.start = wrapped  # type: ignore[attr-defined]


def _subclasses(cls: type) -> list[type]:
    children: list[type] = cls.__subclasses__()
    return [found for child in children for found in (child, *_subclasses(child))]


@contextlib.contextmanager
def _watched(strategy: Any, recorder: Recorder) -> Any:
    """Let the recorder see what the strategy's two aggregating methods return, for the time of one phase."""

    def watched(original: Callable[..., Any], stage: str) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(server_round: int, replies: Any) -> Any:
            made = original(server_round, replies)
            recorder.metrics(server_round, stage, made[1] if stage == "train" else made)
            return made

        return call

    with contextlib.suppress(AttributeError):  # a class with slots: its metrics come at the end, from the result
        strategy.aggregate_train = watched(strategy.aggregate_train, "train")
        strategy.aggregate_evaluate = watched(strategy.aggregate_evaluate, "evaluate")
    try:
        yield
    finally:
        for name in ("aggregate_train", "aggregate_evaluate"):
            vars(strategy).pop(name, None)


def _plain(value: Any) -> Any:
    """A number that JSON can carry; what is not finite becomes null."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return int(value)
