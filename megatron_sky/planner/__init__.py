"""What a job would need and how fast it would be, known before a GPU is asked for."""
