"""Local caves: namespaces made by bubblewrap. Nothing else is needed, no daemon and no image."""
