"""A run as files: its folder, its job, its progress and status."""
