"""What a supernet is made from: its search space, whose weights it takes, and in which order."""
