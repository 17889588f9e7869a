"""The `onward` command: parse arguments, call an operation, and print the result."""
