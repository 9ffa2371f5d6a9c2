"""Programs that are measured, or killed, from outside."""
