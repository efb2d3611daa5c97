"""The model as it is: its prompt, no training. Evaluation alone, the same in every iteration, so one is enough."""

from __future__ import annotations

from nlrl.orchestration.methods import Method
from nlrl.orchestration.stages.strength import run_strength

METHOD = Method(
    stages=(("evaluation", run_strength),),
    first=(("evaluation", run_strength),),
    exports=None,
)
