"""A language model, as a run's config names it."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from nlrl.backbones.registry import bundled_bases
from nlrl.backbones.tuning.settings import Tuning
from nlrl.keys import plain_address, refuse_keys, variable_name
from nlrl.orchestration.section import Section


class ModelConfig(Section):
    """A language model and how it is reached."""

    model_config = ConfigDict(hide_input_in_errors=True)

    kind: Literal["native", "vllm", "openai", "scripted"] = "native"
    """native: our own backbones; vllm: a Hugging Face folder served in this job; openai: any OpenAI-compatible
    endpoint; scripted: a
    Python module with `make_model()` and `make_trainer()`, for tests."""
    name: str = "transformer-base"
    """native: a bundled name or a checkpoint folder. vllm: a model folder. openai: the model's name at the
    endpoint. scripted: a module,
    such as nlrl.testing.by_rules."""
    backbone: str | None = None
    """native: an architecture (transformer, ngpt, diff_transformer, hymba, bimamba), for the name of its bundled base;
    where it is given, it replaces the name."""
    style: Literal["auto", "plain", "instruct"] = "auto"
    """Prompt style; auto is plain for native models and instruct for the others."""
    device: str = "auto"
    """native: cpu, cuda, cuda:1; auto takes a GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of inference; auto is bfloat16 on a GPU and float32 on a CPU. Training keeps float32 weights."""
    base_url: str = ""
    """openai: address of the endpoint, such as http://127.0.0.1:8000/v1."""
    api_key_env: str = "OPENAI_API_KEY"
    """openai: the environment variable that holds the key."""
    max_tokens: int = Field(default=64, gt=0)
    """Longest answer, in tokens."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed on to the client as they are (timeouts, memory limits, prices); see docs/language_models.md."""
    gpus: float | None = Field(default=None, ge=0)
    """vllm: GPUs that Ray gives each server. By default as many as options.tensor_parallel_size where there are GPUs,
    and what model.tuning.gpus_per_worker leaves of one where the model is trained, too."""
    max_transfer_kl: float | None = Field(default=None, ge=0)
    """Most KL from the engine to the trainer, nats a token, over a few answers after weights were sent; the run stops
    beyond it. By default 1e-6 for native models in float32 on a CPU, 0.02 for others; 0 looks at nothing."""
    tuning: Tuning | None = None
    """vllm: train critic and actor, by LoRA adapters or as whole models; without it the model only answers."""

    @model_validator(mode="before")
    @classmethod
    def _backbone_is_a_name(cls, values: Any) -> Any:
        """Puts the base's name in place of its architecture: from here on there is one field that says which model."""
        if not isinstance(values, dict) or values.get("backbone") not in (bases := bundled_bases()):
            return values
        if values.get("kind", "native") != "native":
            raise ValueError(f"backbone is for kind 'native', not '{values['kind']}'")
        return values | {"name": bases[values["backbone"]], "backbone": None}

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, backbone: str | None) -> str | None:
        if backbone is not None:
            raise ValueError(f"the architectures with a bundled base are {', '.join(bundled_bases())}")
        return backbone

    @field_validator("options")
    @classmethod
    def _without_keys(cls, options: dict[str, Any]) -> dict[str, Any]:
        refuse_keys(options, "options")
        return options

    _key_is_named = field_validator("api_key_env")(variable_name)
    _address_is_plain = field_validator("base_url")(plain_address)

    @property
    def prompt_style(self) -> str:
        if self.style != "auto":
            return self.style
        return "plain" if self.kind in ("native", "scripted") else "instruct"

    @property
    def trainable(self) -> bool:
        """Whether a run can train it."""
        return self.kind in ("native", "scripted") or self.tuning is not None

    @model_validator(mode="after")
    def _needs_url(self) -> Self:
        if self.kind == "openai" and not self.base_url:
            raise ValueError("base_url is needed with kind 'openai' (e.g. http://127.0.0.1:8000/v1)")
        return self

    @model_validator(mode="after")
    def _only_vllm_is_tuned(self) -> Self:
        if self.tuning is not None and self.kind != "vllm":
            raise ValueError(f"tuning is for kind 'vllm', not '{self.kind}' (native models are trained without it)")
        return self
