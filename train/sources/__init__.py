"""One module per form in which training data circulate; each turns it into shards."""
