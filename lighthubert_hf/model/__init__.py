"""The model: exactly the files that travel to the Hub. They import each other flat, torch and transformers only."""
