"""From logits to the next token and its log-probability."""
