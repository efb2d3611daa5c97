"""One new token a row attends over keys and values kept in pages."""
