"""Queries and keys of nGPT: turned by position, of one length, scaled."""
