"""What the benchmarks measure with: ways of running a network, what it is compared with, ceilings, records."""
