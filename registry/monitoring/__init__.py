"""Statistics of live traffic: what a version was published with, and whether what it receives still looks like that."""
