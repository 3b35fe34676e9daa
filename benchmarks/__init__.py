"""One script per question; not installed with the library."""
