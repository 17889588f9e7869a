"""Pure logic: from the entries of an environment's log to what is live."""
