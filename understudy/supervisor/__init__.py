"""What becomes of failures: policies, backoff. Pure functions; knows nothing of running actors."""
