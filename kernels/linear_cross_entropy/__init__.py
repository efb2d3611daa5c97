"""Logits and their cross-entropy with the next tokens, without keeping logits."""
