"""From a data set to safetensors: prepare, train, evaluate, report."""
