"""Who acted, and the signatures that prove it."""
