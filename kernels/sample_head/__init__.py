"""From final hidden states to the next token and its log-probability, logits never in memory."""
