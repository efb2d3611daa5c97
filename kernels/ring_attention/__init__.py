"""One new token a row attends over a ring of the last keys and values, behind a prefix that all rows share."""
