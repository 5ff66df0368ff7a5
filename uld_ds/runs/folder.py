"""Where a run keeps its report, and what that shows."""

FOLDER = "report"
"""Folder, in a run's folder, of what was kept while the models were there."""
REPORT = "report.html"
"""File, in a run's folder: the page."""
