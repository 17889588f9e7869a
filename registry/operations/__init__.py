"""Operations on versions and logs: promote, roll back, approve, compare, transfer, prune."""
