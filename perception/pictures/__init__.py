"""What was found, drawn for people to look at."""
