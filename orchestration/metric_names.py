"""Every metric that a run's processes have, by name: what kind it is, what it means, and its labels.

Each also has the labels `run` and `process`. Names follow Prometheus: counters end in `_total`, times are in seconds.
What the native engine counts (`Engine.metrics`) is added as `nlrl_engine_*`, as at `nlrl serve`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram"]


class Metric(NamedTuple):
    """One metric; its samples differ in their labels."""

    kind: Kind
    process: str
    """Where it is counted: driver, rollout, model, trainer or any."""
    help: str
    labels: tuple[str, ...] = ()


SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
BUCKETS = {"nlrl_model_request_seconds": SECONDS, "nlrl_model_batch_requests": SIZES}
"""Upper bounds of histograms."""

METRICS: dict[str, Metric] = {
    "nlrl_iteration": Metric("gauge", "driver", "Iteration that is being done."),
    "nlrl_stage_seconds_total": Metric("counter", "driver", "Seconds that stages took.", ("stage",)),
    "nlrl_stage_done": Metric("gauge", "driver", "What the open stage has done, in its own units.", ("stage",)),
    "nlrl_stage_wanted": Metric("gauge", "driver", "What the open stage will have done; 0: unknown.", ("stage",)),
    "nlrl_stage_before": Metric("gauge", "driver", "What it had done when it was taken up again.", ("stage",)),
    "nlrl_records_written_total": Metric("counter", "driver", "Records added to shards."),
    "nlrl_games_total": Metric("counter", "rollout", "Whole games played, by how they ended.", ("result",)),
    "nlrl_turns_total": Metric("counter", "rollout", "Turns of the policy in whole games."),
    "nlrl_moves_total": Metric("counter", "rollout", "Moves in games, whoever made them."),
    "nlrl_retries_total": Metric("counter", "rollout", "Turns that were asked again, each time."),
    "nlrl_parse_failures_total": Metric("counter", "rollout", "Answers that name no legal move, by why.", ("reason",)),
    "nlrl_forfeits_total": Metric("counter", "rollout", "Games that the policy forfeited."),
    "nlrl_model_requests_total": Metric("counter", "model", "Requests, those answered from memory included."),
    "nlrl_model_cached_requests_total": Metric("counter", "model", "Requests answered from memory."),
    "nlrl_model_failed_requests_total": Metric("counter", "model", "Requests that ended in an error."),
    "nlrl_model_prompt_tokens_total": Metric("counter", "model", "Tokens of prompts that the model was asked."),
    "nlrl_model_generated_tokens_total": Metric("counter", "model", "Tokens that the model wrote."),
    "nlrl_model_request_seconds": Metric("histogram", "model", "From a request to its whole answer."),
    "nlrl_model_batch_requests": Metric("histogram", "model", "Requests that one call had for the model."),
    "nlrl_model_open_requests": Metric("gauge", "model", "Requests that wait for the model or are being answered."),
    "nlrl_model_busy_seconds_total": Metric("counter", "model", "Seconds in which the model had something to answer."),
    "nlrl_model_restarts_total": Metric("counter", "model", "Servers that took the place of one that died."),
    "nlrl_engine_weights_info": Metric(
        "gauge", "model", "1 for the version of each weight set.", ("weights", "version")
    ),
    "nlrl_train_seconds_total": Metric("counter", "trainer", "Seconds of fine-tuning.", ("network",)),
    "nlrl_train_tokens_total": Metric("counter", "trainer", "Tokens trained on, every epoch.", ("network",)),
    "nlrl_train_steps_total": Metric("counter", "trainer", "Steps of the optimiser.", ("network",)),
    "nlrl_train_loss": Metric("gauge", "trainer", "Loss at the end of the last fine-tuning.", ("network",)),
    "nlrl_calls_total": Metric("counter", "any", "Calls that a worker answered.", ("method",)),
    "nlrl_call_seconds_total": Metric("counter", "any", "Seconds in them; several may run at once.", ("method",)),
}

ENGINE = "nlrl_engine_"


def described(name: str) -> Metric:
    """The metric of a name; those of an engine's own figures are made up as they come."""
    if name in METRICS:
        return METRICS[name]
    if name.startswith(ENGINE):
        kind: Kind = "counter" if name.endswith("_total") else "gauge"
        return Metric(kind, "model", name.removeprefix(ENGINE).removesuffix("_total").replace("_", " "))
    raise KeyError(f"there is no metric {name!r}")


def markdown() -> str:
    """The table of docs/watching.md."""
    rows = [
        f"| `{name}` | {metric.kind} | {metric.process} | {', '.join(metric.labels) or '-'} | {metric.help} |"
        for name, metric in METRICS.items()
    ]
    return "\n".join(["| name | kind | process | labels | what it is |", "|---|---|---|---|---|", *rows])
