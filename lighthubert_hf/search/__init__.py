"""Which subnet to take: trials, their scores and costs, and the front of the best."""
