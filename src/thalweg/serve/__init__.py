"""`thalweg serve`: an embedding server for texts of any length."""
