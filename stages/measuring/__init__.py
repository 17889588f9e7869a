"""How the benchmark stage measures: who competes, who is left after screening, with which session options, and where.

race       variants in workers, timed in rounds of random order, and judged by what they compute
screening  successive halving: a few short rounds for all, full measurement only for the fastest that are right
tuning     session options for the finalists
scenarios  batch sweep, concurrent callers, cold start
samples    every latency that was measured, kept
"""
