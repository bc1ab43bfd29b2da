"""One module an op: the function, then the torch.nn module or torch.optim optimizer on it."""
