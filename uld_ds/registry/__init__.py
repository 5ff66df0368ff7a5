"""The model registry: logging students, serving them, promotion, lineage."""
