"""The measurements of the benchmark stage.

race        times variants in rounds of random order and judges their outputs
screening   successive halving: short rounds for all variants, full measurement for the fastest acceptable ones
tuning      session options for the finalists
scenarios   batch sweep, concurrent callers, cold start
samples     the file with every measured latency
statistics  percentiles, ratios with confidence intervals, drift
"""
