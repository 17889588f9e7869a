"""The `onward` command: it parses arguments, calls an operation, and prints."""
