"""The whole job, small and offline."""
