"""The control: a Llama-shaped decoder."""
