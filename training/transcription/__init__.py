"""Speech to text with times, of files of any length and of audio that is still being recorded."""
