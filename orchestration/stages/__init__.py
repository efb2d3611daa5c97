"""The stages of one language policy iteration. Each reads committed records and commits its own."""
