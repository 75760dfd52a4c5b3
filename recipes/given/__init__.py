"""What a user gives by path: masks, their names, and folders."""
