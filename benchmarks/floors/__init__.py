"""What is under us: the least that the same work costs without actors."""
