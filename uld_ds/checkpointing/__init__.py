"""Checkpoints of student and optimizer, and the export of the trained student."""
