"""Pretrained models: finding, checking and shaping them; the row model and its output head."""
