"""Pretrained models: how they are found, checked and shaped; the row model and its output head."""
