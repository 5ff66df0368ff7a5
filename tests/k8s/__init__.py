"""The manifests in k8s/: rendered, validated, and held to rules of our own."""
