"""Reports: pages and terminal views, made from a run's folder alone."""
