"""From files and streams to batches of waveforms."""
