"""What every training run needs: its folder, its end, its memory, its rates, its uploads."""
