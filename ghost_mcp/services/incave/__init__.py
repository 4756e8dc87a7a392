"""Programs that run in caves, on what the cave has; nothing here is imported outside of one."""
