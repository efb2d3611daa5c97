"""Logits of a student and of a teacher and the cross-entropy between them, without keeping either."""
