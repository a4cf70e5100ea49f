"""What a model costs: parameters, multiply-accumulates, time and memory on this machine."""
