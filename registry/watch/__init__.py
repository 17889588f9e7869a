"""Watches live versions: `onward monitor` and `onward serve --monitor`. Rolls back where the policy says so."""
