"""Training: the engine step over DeepSpeed engines, and the loop around it."""
