"""What training reads, and what makes pictures."""
