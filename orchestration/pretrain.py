"""`nlrl pretrain CONFIG`: makes a board-literate base from nothing: corpus, tokenizer, weights, and a report of
what it can do."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nlrl.agents.corpus import CorpusSettings, examples
from nlrl.agents.corpus.stream import member
from nlrl.agents.corpus.tokens import atom_texts, atoms
from nlrl.agents.language import language_of
from nlrl.backbones.registry import MODELS
from nlrl.envs import make_from_spec
from nlrl.errors import NLRLError
from nlrl.orchestration.base_study import study_model
from nlrl.orchestration.config import read_toml, validated

if TYPE_CHECKING:
    from nlrl.backbones.packing import TokenExample

log = logging.getLogger(__name__)
ENCODE_AT_ONCE = 512
TOKENIZER_TEXTS = 40_000


class PretrainConfig(BaseModel):
    """Everything that decides a base model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path
    """Folder of the finished model."""
    model_type: str = "transformer"
    """An architecture: one of `nlrl.backbones.registry.MODELS`."""
    architecture: dict[str, Any] = Field(default_factory=dict)
    """Fields of the backbone's config (hidden_size, num_hidden_layers, ...)."""
    game: str = "tictactoe"
    games: dict[str, float] = Field(default_factory=dict)
    """Several games in place of `game`: specs, or families (`seed=*`), with their shares of the examples."""
    facts: bool = True
    """False: no sentences that state facts about a position (an ablation)."""
    vocab_size: int = Field(default=1024, gt=300, le=2048)
    seed: int = 0
    device: str = "auto"
    steps: int = Field(default=6000, gt=0)
    max_seconds: float | None = None
    """Stop after this long; the learning rate then follows the clock."""
    rows: int = Field(default=192, gt=0)
    row_length: int = Field(default=512, gt=0)
    peak_lr: float = Field(default=2e-3, gt=0)
    warmup: int = Field(default=150, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    workers: int = Field(default=12, ge=0)
    study_prompts: int = Field(default=1000, ge=0)
    """Held-out prompts of each role in the report written beside the weights."""
    stored: Literal["float32", "float16", "bfloat16", "int8", "bits"] = "float16"
    """What the finished weights are stored in; see `nlrl.backbones.loading.store`."""
    tokenizer: Path | None = None
    """Folder of an existing tokenizer to use instead of training one; with a teacher, its own by default."""
    corpus: Path | None = None
    """A file that `nlrl corpus` wrote, read once instead of generating examples; it needs its `tokenizer`, too."""
    teacher: str | None = None
    """A bundled name or a model folder of the same vocabulary: its distributions are learned instead of the tokens."""

    @field_validator("model_type")
    @classmethod
    def _known(cls, model_type: str) -> str:
        if model_type not in MODELS:
            raise ValueError(f"the architectures are {', '.join(sorted(MODELS))}")
        return model_type

    @field_validator("games")
    @classmethod
    def _playable(cls, games: dict[str, float]) -> dict[str, float]:
        for spec, share in games.items():
            if not share > 0:
                raise ValueError(f"{spec}: a share must be above 0, not {share}")
            try:
                language_of(make_from_spec(member(spec)))
            except NLRLError as error:
                raise ValueError(str(error)) from None
        return games

    @property
    def about(self) -> CorpusSettings:
        """What the corpus is about."""
        return CorpusSettings(self.game, self.facts, games=tuple(self.games.items()))

    @model_validator(mode="after")
    def _bits_are_signs(self) -> Self:
        if self.stored == "bits" and (self.model_type != "bimamba" or not self.architecture.get("binary", True)):
            raise ValueError("stored as 'bits' is for model_type 'bimamba' with binary weights")
        return self


def load_pretrain_config(path: Path, **overrides: Any) -> PretrainConfig:
    """Reads and checks a pretraining config.

    Raises:
        NLRLError: no such file, or a field that is unknown or out of range, by name.
    """
    return validated(PretrainConfig, read_toml(path) | overrides, str(path))


def token_stream(
    tokenizer: Any, settings: CorpusSettings, worker: int, num_workers: int, seed: int
) -> Iterator[TokenExample]:
    """The corpus as tokens, for one loader process."""
    from nlrl.backbones.packing import TokenExample
    from nlrl.backbones.prompts import encode_texts

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core already
    stream = examples(settings, seed, worker)
    while True:
        batch = list(islice(stream, ENCODE_AT_ONCE))
        prompts = encode_texts(tokenizer, [f"<bos>{e.messages[-1].content}<answer>" for e in batch])
        answers = encode_texts(tokenizer, [f"{e.completion}<eos>" for e in batch])
        for prompt, answer in zip(prompts, answers, strict=True):
            yield TokenExample(tuple(prompt), tuple(answer))


def make_tokenizer(config: PretrainConfig) -> Any:
    """Trains the tokenizer on the corpus, or loads the one the config names, or that of the teacher it names."""
    from nlrl.backbones.tokenizer import load_tokenizer, train_tokenizer

    if config.tokenizer is not None:
        return load_tokenizer(config.tokenizer)
    if config.teacher is not None:
        from nlrl.backbones.loading import load

        return load(config.teacher)[1]
    sample = islice(examples(config.about, config.seed), TOKENIZER_TEXTS)
    texts = (text for example in sample for text in (example.messages[-1].content, example.completion))
    languages = [language_of(make_from_spec(member(spec))) for spec in config.about.specs]
    return train_tokenizer(texts, atoms(languages), atom_texts(languages), config.vocab_size)


def architecture(config: PretrainConfig, vocab_size: int) -> Any:
    """The backbone's own config.

    Raises:
        NLRLError: a field that it does not have, or shapes that cannot be.
    """
    from transformers import AutoConfig

    import nlrl.backbones  # noqa: F401  (registers the backbones)

    known = {each.name for each in fields(type(AutoConfig.for_model(config.model_type)))}
    if unknown := sorted(config.architecture.keys() - known):
        raise NLRLError(f"architecture: a {config.model_type!r} model has no field '{unknown[0]}'")
    try:
        return AutoConfig.for_model(config.model_type, **{"vocab_size": vocab_size} | config.architecture)
    except Exception as error:  # each of its validators has its own type
        raise NLRLError(f"architecture: {' '.join(str(error).split())}") from None


def run_pretraining(config: PretrainConfig) -> dict[str, Any]:
    """Pretrains a base, saves it to `config.out` and returns its report (also written there as `report.json`).

    Started by `torchrun` as several processes, these train together, each on its own GPU; the first one does the rest
    and gives the report, the others an empty one.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from nlrl.backbones.loading import store
    from nlrl.backbones.pretraining import PretrainSettings, pretrain
    from nlrl.backbones.ranks import Ranks

    ranks = Ranks.of_environment()
    device = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    architecture(config, config.vocab_size)  # a mistake is found before the corpus is read for the tokenizer
    tokenizer = ranks.from_first(lambda: make_tokenizer(config))
    model_config = architecture(config, len(tokenizer))
    teacher = None if config.teacher is None else _teacher(config.teacher, tokenizer, device)
    torch.manual_seed(config.seed)
    model = AutoModelForCausalLM.from_config(model_config).to(device)
    settings = PretrainSettings(
        steps=config.steps, max_seconds=config.max_seconds, rows=config.rows, row_length=config.row_length,
        peak_lr=config.peak_lr, warmup=config.warmup, betas=config.betas, weight_decay=config.weight_decay,
        seed=config.seed, workers=config.workers,
    )  # fmt: skip
    stream = _stream(config, tokenizer)
    tell = (lambda line: None) if ranks.rank else (lambda line: log.info("%s", line))
    metrics = pretrain(model, tokenizer, stream, settings, tell, teacher, ranks)
    ranks.leave()
    if ranks.rank:
        return {}
    store(model, tokenizer, config.out, config.stored)
    report = {"config": json.loads(config.model_dump_json()), "training": _plain(metrics), "roles": {}}
    report["parameters"] = sum(p.numel() for p in model.parameters())
    write_report(config.out, report)
    if config.study_prompts:
        report["roles"] = study_model(str(config.out), config.study_prompts, config.seed + 1, config.about)
        write_report(config.out, report)
    return report


def _teacher(name: str, tokenizer: Any, device: str) -> Any:
    from nlrl.backbones.checkpoint import fingerprint
    from nlrl.backbones.loading import load

    teacher, theirs = load(name, device)
    if fingerprint(theirs) != fingerprint(tokenizer):
        raise NLRLError(f"teacher: {name} gives tokens other numbers than the `tokenizer` does; use its own")
    return teacher


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Writes `report.json` beside the weights."""
    (folder / "report.json").write_text(json.dumps(report, indent=1, default=str) + "\n")


def write_corpus(config: PretrainConfig, out: Path, count: int, workers: int) -> int:
    """Trains the config's tokenizer (saved to `out` with the suffix `.tokenizer`) and writes the first examples of its
    corpus to `out`: the same work for every model that is then pretrained on them. Returns how many there are."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    from tempfile import TemporaryDirectory

    from nlrl.backbones.token_file import write_examples

    tokenizer = make_tokenizer(config)
    tokenizer.save_pretrained(out.with_suffix(".tokenizer"))
    with TemporaryDirectory() as folder, ProcessPoolExecutor(workers, get_context("fork")) as pool:
        parts = [Path(folder) / f"{worker}.npz" for worker in range(workers)]
        write = partial(_write_part, config, tokenizer, -(-count // workers), workers)
        list(pool.map(write, parts, range(workers)))
        return write_examples(out, parts)


def _write_part(config: PretrainConfig, tokenizer: Any, count: int, workers: int, part: Path, worker: int) -> None:
    from nlrl.backbones.token_file import write_part

    write_part(part, islice(token_stream(tokenizer, config.about, worker, workers, config.seed), count))


def _stream(config: PretrainConfig, tokenizer: Any) -> Any:
    """Where the examples come from: a file or the generators. (worker, workers, seed) -> that worker's."""
    if config.corpus is None:
        return partial(_stream_for, tokenizer, config.about)
    if config.tokenizer is None:
        raise NLRLError("corpus: name the corpus's own `tokenizer`, too: its tokens are already numbers")
    from nlrl.backbones.token_file import read_examples

    path = config.corpus
    return lambda worker, workers, seed: read_examples(path, worker, workers)


def _stream_for(tokenizer: Any, corpus: CorpusSettings, worker: int, num_workers: int, seed: int) -> Iterator[Any]:
    return token_stream(tokenizer, corpus, worker, num_workers, seed)


def _plain(metrics: Any) -> Any:
    return asdict(metrics) if hasattr(metrics, "__dataclass_fields__") else dict(metrics)
