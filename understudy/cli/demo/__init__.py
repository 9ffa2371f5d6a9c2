"""`understudy demo`: an agent at work, killed in the middle, started again."""
