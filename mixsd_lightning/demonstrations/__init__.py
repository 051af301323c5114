"""What a teacher is shown besides the task: solved samples, general instructions, wrong answers (UniSD, arXiv 2605.06597)."""
