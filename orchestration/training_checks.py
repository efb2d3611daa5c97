"""What a run's way of training cannot do, refused before anything starts."""

from __future__ import annotations

from nlrl.errors import NLRLError
from nlrl.orchestration.config import RunConfig

KEEPERS = ("critic", "actor", "grpo", "ppo", "dpo")
"""Sections that have `keep_optimizer`."""


def check_training(config: RunConfig) -> None:
    """Refuses several trainers, kept optimizers and saved rounds where there are none.

    Raises:
        NLRLError: names the field.
    """
    model, cluster = config.model, config.cluster
    if cluster.trainers > 1:
        what = f"cluster.trainers is {cluster.trainers}, but "
        if model.kind != "native":
            instead = "; set model.tuning.workers" if model.kind == "vllm" else ""
            raise NLRLError(f"{what}model.kind is '{model.kind}': only native models have several trainers{instead}")
        if cluster.kind != "ray":
            raise NLRLError(f"{what}cluster.kind is '{cluster.kind}': several processes need 'ray'")
    if model.kind == "native":
        return
    fields = [f"{name}.keep_optimizer" for name in KEEPERS if getattr(config, name).keep_optimizer]
    fields += [f"{name}.save_every" for name in ("critic", "actor") if getattr(config, name).save_every]
    if fields:
        raise NLRLError(
            f"{fields[0]} is set, but model.kind is '{model.kind}': only rounds of native models keep an optimizer or "
            "are saved in the middle; leave it out"
        )
