"""Fine-tuning with transformers' Trainer: CTC, classes, speakers, who speaks when."""
