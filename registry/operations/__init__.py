"""What people do with versions: promote, roll back, approve, compare, transfer, prune."""
