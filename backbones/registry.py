"""Which architectures there are, and how Hugging Face's Auto classes learn of them.

`import nlrl.backbones` must make `AutoModelForCausalLM` know our models, yet also runs before
`nlrl.backbones.language_model`, which must not cost an import of torch. So nothing is imported here. As soon as
somebody imports `transformers` the configurations are imported, and each registers itself; a model's own module
follows when a model of it is made.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from pathlib import Path
from typing import Any

MODELS = {
    "diff_transformer": "nlrl.backbones.diff_transformer.modeling:DiffTransformerForCausalLM",
    "bimamba": "nlrl.backbones.bimamba.modeling:BiMambaForCausalLM",
    "hymba": "nlrl.backbones.hymba.modeling:HymbaForCausalLM",
    "ngpt": "nlrl.backbones.ngpt.modeling:NGPTForCausalLM",
    "transformer": "nlrl.backbones.transformer.modeling:TransformerForCausalLM",
}
"""Where each `model_type` lives; its configuration is in `configuration.py` beside it, what it computes in
`network.py`."""
NETWORKS = {
    "diff_transformer": "nlrl.backbones.diff_transformer.network:DiffTransformerNetwork",
    "bimamba": "nlrl.backbones.bimamba.network:BiMambaNetwork",
    "hymba": "nlrl.backbones.hymba.network:HymbaNetwork",
    "ngpt": "nlrl.backbones.ngpt.network:NGPTNetwork",
    "transformer": "nlrl.backbones.transformer.network:TransformerNetwork",
}
"""The same without `transformers`."""
BUNDLED = Path(__file__).parent / "bundled"
"""Folder of the models that come with the package."""


def base_name(model_type: str) -> str:
    """The name of an architecture's bundled base, whether there is one or not."""
    return f"{model_type.replace('_', '-')}-base"


def bundled_bases() -> dict[str, str]:
    """Architecture -> the name of its base, of those that come with the package."""
    return {kind: base_name(kind) for kind in sorted(MODELS) if (BUNDLED / base_name(kind) / "config.json").exists()}


def model_class(model_type: str) -> type:
    """The class of a known model type; imports torch and transformers."""
    return imported(MODELS[model_type])


def network_class(model_type: str) -> type:
    """The `Network` of a known model type; imports torch."""
    return imported(NETWORKS[model_type])


def imported(path: str) -> Any:
    """What "module:name" names."""
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def register(config_class: type) -> type:
    """Class decorator: tells the Auto classes of a configuration and its model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    AutoConfig.register(config_class.model_type, config_class)
    AutoModelForCausalLM.register(config_class, ModelToCome(config_class))
    return config_class


class ModelToCome:
    """Stands for a model class whose module is not imported yet.

    Auto classes take a class to ask it for `from_pretrained` or `from_config`; here the question makes the import.
    Importing the class when it is registered would run in circles: registration happens inside whichever import of
    ours first needs `transformers`.
    """

    def __init__(self, config_class: type):
        self.config_class = config_class
        self.__name__ = MODELS[config_class.model_type].split(":")[1]

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(model_class(self.config_class.model_type), name)


def import_configurations() -> None:
    """Imports, and thereby registers, every configuration; one that is being imported right now registers itself when
    it is done."""
    for path in MODELS.values():
        importlib.import_module(path.split(":")[0].replace(".modeling", ".configuration"))


def register_with_transformers() -> None:
    """Registers now if `transformers` is loaded, otherwise when it will be."""
    if "transformers" in sys.modules:
        import_configurations()
    else:
        sys.meta_path.insert(0, _AfterImport("transformers"))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds one module as everybody would, and sees to it that our configurations follow its import."""

    def __init__(self, module: str):
        self.module = module
        self.searching = False

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.module or self.searching:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            self._follow(spec.loader)
        return spec

    def _follow(self, loader) -> None:
        execute = loader.exec_module

        def exec_module(module):
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                import_configurations()

        loader.exec_module = exec_module
