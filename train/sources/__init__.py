"""The forms in which training data circulate, one module each; ``python -m train.prepare`` turns them into shards."""
