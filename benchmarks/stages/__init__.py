"""The stages that a machine with a GPU runs, and what is still owed."""
