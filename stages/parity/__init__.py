"""Whether two implementations compute the same: test cases, comparison, references, quality."""
