"""Which of a Ray cluster's machines a worker goes to, and what is to be said of one that died."""

from __future__ import annotations

import re
from typing import Any

import ray
import ray.exceptions

PATIENCE = 90
"""Seconds until Ray must have made up its mind about a node that does not answer: by its own settings it takes about a
minute."""
_NODE_LABEL = "ray.io/node-id"


class Turns:
    """The cluster's nodes, one after another from the driver's on, for workers that reserve nothing: Ray itself would
    draw one for each, and now and then all of them the same. A head that offers no CPUs is left alone where there are
    others."""

    def __init__(self) -> None:
        self._taken = 0

    def next(self) -> dict[str, Any]:
        """Options of an actor that is to be on the next node, or on any if that one is gone; none if there is only one.

        (A soft `NodeAffinitySchedulingStrategy` would say the same, but Ray does not heed it for actors that reserve
        nothing.)
        """
        nodes = alive()
        if len(nodes) < 2:
            return {}
        here = ray.get_runtime_context().get_node_id()
        ids = [node["NodeID"] for node in nodes if node["Resources"].get("CPU")] or [node["NodeID"] for node in nodes]
        ids.sort(key=lambda each: (each != here, each))
        self._taken += 1
        chosen = {_NODE_LABEL: ids[(self._taken - 1) % len(ids)]}
        return {"label_selector": chosen, "fallback_strategy": [{"label_selector": {}}]}


def alive() -> list[dict[str, Any]]:
    """What Ray tells of each living node."""
    return [node for node in ray.nodes() if node["Alive"]]


def settled(error: Exception, actor: Any) -> Exception:
    """What became of a worker that could not be reached: its death, once Ray is sure of it, or the error itself."""
    if not isinstance(error, ray.exceptions.ActorUnavailableError):
        return error
    try:
        ray.get(actor.read.remote(""), timeout=PATIENCE)
    except ray.exceptions.GetTimeoutError:
        return error
    except ray.exceptions.RayError as later:
        return later
    return error


def cause_of_death(error: Exception) -> str:
    """In a few words: the node, if it was that, or how the process ended."""
    kind, text = type(error).__name__, str(error)
    if found := re.search(r"node has died\. Node Id: (\w+)\s*(.*)", text):
        return f"{kind}: its node {address_of(found[1])} is gone, {found[2].strip() or 'or its network'}"
    if found := re.search(r"Worker exit type: (\w+)", text):
        return f"{kind}, {found[1]}: killed, out of memory or crashed"
    return f"{kind}: {first_line(error)}"


def address_of(node_id: str) -> str:
    """The address of a node, dead or alive; its id, if Ray has forgotten it."""
    found = [node for node in ray.nodes() if node["NodeID"] == node_id] if ray.is_initialized() else []
    return found[0]["NodeManagerAddress"] if found else node_id


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
