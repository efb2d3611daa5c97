"""Fine-tuning of Hugging Face models: adapters over a frozen base (LoRA), or every weight.

`settings.Tuning` says how; `sft.tune` does it, with TRL and PEFT (imported only there); `weights.TunedWeights` is
what comes of it: what vLLM is given, a run commits and an export holds.
"""
