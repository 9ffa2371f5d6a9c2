"""The model endpoint: one model call as data, its provider, its failures, its price, its limits."""
