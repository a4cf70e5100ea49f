"""What a task is, whoever trains for it: frames and labels, losses, trials. Fine-tuning and evaluation share it."""
